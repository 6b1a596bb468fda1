"""Whole fleets in one process: real coordinator and protocol, virtual time, bowls or real models, traces.

Replaces the machine, never the server's logic.

May import: serve, rounds, planning, profiles, web, views, storage, fleet, job, bandit, evaluation, events, errors; of
    edge_runtime: agent, store, backprop, forward_only, engines, data, network, protocol, bundle, files, values,
    errors.
Must never come in: a second version of a rule that the server has.
"""
