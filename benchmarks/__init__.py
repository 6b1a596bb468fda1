"""Benchmarks: speed and memory, how well methods learn, how well the bandit chooses. Run as `python -m benchmarks.…`.

May import edge_runtime, server and export, whose public functions it measures. Nothing of these may import it, and
no claim of the documentation may rest on a figure that no command here prints.
"""
