"""The operator's HTTP API, version 1: what commands and dashboard ask of a running server, described by OpenAPI.

Translates requests into operations and errors into answers; decides nothing.

May import: access, queue, client, web, views, metrics, storage, errors; of edge_runtime: protocol, bundle,
    files, values, errors.
Must never come in: SQL, rounds, the devices' messages.
"""
