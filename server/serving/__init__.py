"""A fleet's server as a process: opens broker, HTTP side, ledger and API, and runs jobs until it is told to stop.

May import: api, compose, queue, rounds, web, storage, job, evaluation, views, errors, events; of edge_runtime: engines, data, bundle,
    network, protocol, files, errors.
Must never come in: decisions about rounds, printing.
"""
