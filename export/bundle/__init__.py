"""The bundle on disk: graphs, weights, layout, golden vectors, and the manifest that is written last.

An interrupted export is visibly unfinished.

May import: graphs, trace, model, source, errors; of edge_runtime: engines, data,
bundle, perturbation, files, values, errors.
Must never come in: parsing of flags, printing.
"""
