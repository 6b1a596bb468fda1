"""Simulation: the real server, protocol and bandit with devices that only cost virtual time."""
