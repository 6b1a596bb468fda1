"""Public data that the demo and the benchmarks use: packages that carry models and reviews, divided among devices.

Fetches by package name and hash; knows nothing of jobs.

May import: nothing of its side; of edge_runtime: errors.
Must never come in: the ledger, rounds, private data.
"""
