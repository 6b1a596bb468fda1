"""Who asks over the operator's API, and whether they may: operators, sessions, forms, rates, headers; the gate.

Knows HTTP and no operation: what is asked for is the business of the rooms behind the gate.

May import: web, trust, storage; of edge_runtime: errors.
Must never come in: jobs, devices, SQL, what a change does.
"""
