"""A finished adapter or model in the forms that other programs load: PEFT, Hugging Face, ONNX, ExecuTorch, GGUF.

Each is written under another name first, and checked against PyTorch or read back where that is cheap.

May import: finished, graphs, model, source, quiet, errors; of edge_runtime: files, values, errors.
Must never come in: options of the command line, the server's ledger.
"""
