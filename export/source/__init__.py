"""A local Hugging Face folder or GGUF file: what it holds, and what differs between known architectures.

Looks before anything is loaded.

May import: quiet, errors; of edge_runtime: errors.
Must never come in: torch modules, tracing.
"""
