"""What the device keeps on disk: bundles, adapters, personal layers, the journal; and how it gets what is missing.

A file becomes current by an atomic rename after its hash matched.

May import: forward_only, backprop, engines, releases, network, protocol, bundle, files, values, errors.
Must never come in: plans and their order, training.
"""
