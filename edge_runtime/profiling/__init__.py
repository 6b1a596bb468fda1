"""Measures this board with a bundle: latency, memory, power, perturbation and link rates.

Each graph runs in a process of its own. Every figure carries its provenance.

May import: engines, device, data, network, protocol, bundle, perturbation, host, values, errors.
Must never come in: training, the store, modelled numbers.
"""
