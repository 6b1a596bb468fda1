"""The module as an exported program: the traced loss, weights lifted to inputs, gradients.

Ends at an ATen graph that knows no runtime.

May import: model, source, quiet, errors; of edge_runtime: data, bundle.
Must never come in: ONNX, ExecuTorch, files of a bundle.
"""
