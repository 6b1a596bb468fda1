"""The PyTorch module to export: options, tasks, losses, LoRA or full training, finished adapters.

Everything here is eager PyTorch.

May import: source, quiet, errors; of edge_runtime: data, bundle, files, errors.
Must never come in: torch.export, ONNX, ExecuTorch.
"""
