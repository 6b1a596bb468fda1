"""Reads and writes files safely: atomic replacement, SHA-256, mapped safetensors, TOML into structs.

Knows how bytes reach the disk and come back, and no Covey format.

May import: values, errors.
Must never come in: a manifest, a message, a state directory.
"""
