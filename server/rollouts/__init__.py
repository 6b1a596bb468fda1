"""Rollouts: a new bundle, adapter or version of Covey goes to a fleet group by group, and goes back by itself.

May import: fleet, storage, job, events, errors; of edge_runtime: bundle, protocol, network, files, values, errors.
Must never come in: rounds, HTTP, SQL, clocks.
"""
