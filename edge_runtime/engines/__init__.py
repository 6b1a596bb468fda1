"""Runs a bundle's graphs on ONNX Runtime or ExecuTorch, checks golden vectors, and predicts.

The quadratic engine, whose gradient is known, stands in for both in tests and simulation. The runtime is imported
only where an engine is made, so that an idle device stays small.

May import: data, bundle, perturbation, files, host, values, errors.
Must never come in: rounds, plans, torch.
"""
