"""Exported programs as a runtime's graphs, for ONNX Runtime and for ExecuTorch with XNNPACK.

One conversion for each runtime, checked against the program.

May import: trace, model, quiet, errors; of edge_runtime: data, bundle, files, errors.
Must never come in: the manifest, options of the command line.
"""
