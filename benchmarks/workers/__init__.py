"""The processes whose speed and memory are measured: each holds one kind of routines and runs one when it is asked.

May import harness, edge_runtime, export and the rivals' libraries, inside the routine that needs them: what a worker
imports counts in its memory. A worker never compares or prints figures for people: that is for the benchmarks.
"""
