"""``covey``'s subcommands of the server, one file each: parse flags, call the rooms below, print the result.

A command imports what it needs when it runs.

May import: demo, simulation, serve, views, profiles, samples, storage, job, bandit, errors; of edge_runtime: network,
    protocol, bundle, files, output, values, errors.
Must never come in: logic that another command or a test would want.
"""
