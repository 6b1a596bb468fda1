"""Benchmarks of speed and memory, as ratios of two measurements that alternate on the same machine.

May import harness and, by the names of its routines, asks workers; edge_runtime and server for what it starts.
Accuracy and losses never come in: learning measures them. What an export has written into a bundle may be printed.
"""
