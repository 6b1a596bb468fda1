"""Devices' measured profiles on the server: received, kept as files, compared, plotted; and modelled boards.

A modelled number is labelled as such and never mixed with a measured one.

May import: storage; of edge_runtime: protocol, bundle, files, output, errors.
Must never come in: rounds, SQL, the bandit's choices.
"""
