"""All SQL and all files of the server: ledger, queries, records, blobs, adapters, result folders.

The only room that knows the schema: a decision is written here before it takes effect.

May import: job, bandit, errors; of edge_runtime: forward_only, protocol, bundle, files, values, errors.
Must never come in: decisions, the network, printing.
"""
