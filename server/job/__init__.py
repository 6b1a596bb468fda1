"""A job: its file, defaults, methods by name, its fit to a bundle, its privacy budget.

Reads and checks what the operator wrote; decides nothing about a round.

May import: bandit; of edge_runtime: data, protocol, bundle, files, values, errors.
Must never come in: devices, the ledger, the network.
"""
