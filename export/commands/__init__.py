"""``covey export``, ``finish`` and ``probe``, one file each: parse flags, call the rooms below, print the result.

A command imports torch only when it runs, so that ``covey --help`` stays fast.

May import: outputs, bundle, probe, graphs, model, source, errors; of edge_runtime: output, bundle, errors.
Must never come in: logic that another command or a test would want.
"""
