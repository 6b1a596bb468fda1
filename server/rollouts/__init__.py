"""Rollouts: a new bundle, adapter or version of Covey goes to a fleet group by group, and goes back by itself.

May import: fleet, storage, job, errors; of edge_runtime: bundle, protocol, network, files, errors.
Must never come in: rounds, HTTP, SQL, clocks.
"""
