"""Devices as they were last heard, which of them may take part, and who is picked fairly for a round.

Knows what devices say of themselves, and not what they trained; how often all of them are looked at; and whether
another server is on the fleet.

May import: errors; of edge_runtime: errors, network, protocol, bundle, seeds.
Must never come in: jobs' progress, the ledger, connections that it makes itself.
"""
