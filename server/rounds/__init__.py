"""A round from plan to next adapter: opened, offered, reported, merged and closed.

The state machine has no I/O and no clock; whoever acts on it writes to the ledger first.

May import: planning, profiles, web, storage, fleet, evaluation, job, bandit, events, errors; of edge_runtime:
    forward_only, network, protocol, bundle, files, perturbation, values, errors.
Must never come in: SQL, printing, training.
"""
