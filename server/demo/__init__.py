"""``covey demo``: recipes, device processes and the table at the end.

A user of the server and of ``covey-edge``, with nothing of its own that a fleet needs.

May import: serving, client, web, views, storage, evaluation, samples, errors; of edge_runtime: agent, store, engines,
    data, bundle, files, values, errors.
Must never come in: logic of rounds, special cases for the demo elsewhere.
"""
