"""Draws up the next round: who gets which assignment, by memory or by the bandit, and how P2 and split adapt.

Asks storage what is known and returns a plan; sends nothing.

May import: storage, fleet, job, bandit; of edge_runtime: protocol, bundle, seeds.
Must never come in: SQL, messages on the wire, threads.
"""
