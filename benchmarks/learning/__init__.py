"""Benchmarks of how well methods learn: complete jobs on the real server and protocol, kept in `benchmarks/results`.

A benchmark here lists what it compares and reports it; runs, results, rows, tables and plots are the harness's. May
import harness, server, edge_runtime and export. Measuring code never comes in, except through harness.
"""
