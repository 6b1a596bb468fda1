"""``covey``'s subcommands of the server, one file each: parse flags, call the rooms below, print the result.

A command imports what it needs when it runs.

May import: demo, simulation, serve, profiles, views, storage, samples, bandit; of edge_runtime: network, protocol,
    files, output, errors.
Must never come in: logic that another command or a test would want.
"""
