"""A job as one HTML page that needs nothing beside it: figures, plots, rounds and devices.

May import: nothing of its side; of edge_runtime: errors.
Must never come in: the ledger, anything that the page would load from elsewhere.
"""
