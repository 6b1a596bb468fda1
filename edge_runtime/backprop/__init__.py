"""The backpropagation step with layer dropout (DropPEFT's STLD), and one round of such steps.

Draws layers, takes AdamW steps and ranks layers by importance. Pure NumPy over the gradients that an engine returns.

May import: engines, data, protocol, bundle, seeds, values, errors.
Must never come in: the network, the agent, forward_only.
"""
