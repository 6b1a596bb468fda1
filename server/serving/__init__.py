"""A fleet's server as a process: opens broker, HTTP side, ledger and API, and runs jobs until it is told to stop.

May import: access, advice, api, dashboard, compose, queue, rollouts, rounds, client, ray_work, web, views, metrics,
    trust, storage, fleet, evaluation, job, events, errors; of edge_runtime: fronts, forward_only, engines, data, trust,
    signing, network, protocol, bundle, files, values, errors.
Must never come in: decisions about rounds, printing.
"""
