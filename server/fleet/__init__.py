"""Devices as they were last heard, which of them may take part, and who is picked fairly for a round.

Knows what devices say of themselves, and not what they trained.

May import: nothing of its side; of edge_runtime: protocol, seeds.
Must never come in: jobs' progress, the ledger, the network.
"""
