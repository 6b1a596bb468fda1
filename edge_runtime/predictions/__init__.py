"""Predictions and corrections for programs on the device's own machine: answers texts over local HTTP, takes feedback.

A prediction shares nothing that changes with training: it has a graph, a workspace and a tokenizer of its own, and the
adapter's file, which nobody writes to.

May import: store, engines, data, protocol, bundle, values, errors.
Must never come in: the agent, the network, command-line parsing, printing.
"""
