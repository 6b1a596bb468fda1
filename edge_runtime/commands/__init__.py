"""``covey-edge``'s subcommands, one file each: parse flags, call the rooms below, print the result.

A command imports what it needs when it runs, so that --help and an idle device stay light.

May import: agent, predictions, profiling, store, update, engines, device, data, trust, signing, network, protocol,
    bundle, perturbation, files, host, output, notify, values, errors.
Must never come in: logic that another command or a test would want.
"""
