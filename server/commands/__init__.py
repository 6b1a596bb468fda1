"""``covey``'s subcommands of the server, one file each: parse flags, call the rooms below, print the result.

A command imports what it needs when it runs.

May import: access, demo, simulation, swarm, serving, queue, client, web, profiles, advice, views, report, trust, flash,
    provision, ray_work, rollouts, traces, storage, samples, job, bandit, events, errors; of edge_runtime: commands,
    engines, data, trust, signing, network, protocol, bundle, files, output, notify, values, errors.
Must never come in: logic that another command or a test would want.
"""
