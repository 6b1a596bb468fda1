"""Commands' way to a running server: its HTTP API over the local socket, or over TCP with a token.

May import: errors; of edge_runtime: protocol, errors.
Must never come in: the ledger, printing.
"""
