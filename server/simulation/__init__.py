"""Whole fleets in one process: real coordinator and protocol, virtual time, bowls or real models, traces.

Replaces the machine, never the server's logic.

May import: serving, advice, compose, ray_work, rounds, profiles, storage, evaluation, job, bandit, events, errors; of
    edge_runtime: agent, store, forward_only, backprop, engines, device, data, network, protocol, bundle, values,
    errors.
Must never come in: a second version of a rule that the server has.
"""
