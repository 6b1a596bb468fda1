"""Exported programs as a runtime's graphs, for ONNX Runtime and for ExecuTorch with XNNPACK.

One conversion for each runtime, checked against the program.

May import: trace, model, source, quiet, errors; of edge_runtime: bundle, data, engines, files, values, errors.
Must never come in: the manifest, options of the command line.
"""
