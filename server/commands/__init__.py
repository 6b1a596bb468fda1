"""``covey``'s subcommands of the server, one file each: parse flags, call the rooms below, print the result.

A command imports what it needs when it runs.

May import: access, demo, simulation, serving, client, web, profiles, views, report, trust, flash, provision, rollouts,
    storage, samples, job, bandit, events; of edge_runtime: commands, engines, trust, signing, network, protocol,
    bundle, files, output, notify, values, errors.
Must never come in: logic that another command or a test would want.
"""
