"""Divides work among processes and machines with Ray: the only room that imports it, and only when it is asked to.

The same work gives the same bits, whatever the number of workers and whichever of them dies.

May import: evaluation, errors; of edge_runtime: engines, data, forward_only, bundle, values, errors.
Must never come in: what is computed, beyond how it is cut into pieces; the network's messages, the ledger.
"""
