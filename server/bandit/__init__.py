"""Chooses an arm for each device from prices, learned gains and step times, by a policy.

Pure: states in, choices out.

May import: nothing of its side; of edge_runtime: protocol, bundle.
Must never come in: a clock, files, the network, the ledger.
"""
