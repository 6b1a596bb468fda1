"""The zeroth-order step (FedSPZO), one round of such steps, and the exact replay of anyone's steps.

Server and device run the same replay to the same bits.

May import: engines, data, protocol, bundle, files, perturbation, seeds, values, errors.
Must never come in: the network, the agent, gradients.
"""
