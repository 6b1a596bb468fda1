"""The bundle on disk: graphs, weights, layout, golden vectors, and the manifest that is written last.

An interrupted export is visibly unfinished.

May import: graphs, trace, model, source, quiet, errors; of edge_runtime: bundle, engines, data, files, values,
    errors.
Must never come in: parsing of flags, printing.
"""
