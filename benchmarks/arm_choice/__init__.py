"""Benchmarks of the bandit: its policies on simulated traces, and a fleet of real device processes.

May import harness, server and edge_runtime. A policy never comes in: the ones that are compared live in server.bandit.
"""
