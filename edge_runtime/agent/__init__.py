"""The device's side of the protocol: announces, takes plans, trains, reports, proves the adapter.

The only room that puts board, network, store and training together.

May import: predictions, profiling, store, update, forward_only, backprop, fronts, engines, device, data, signing,
    releases, network, protocol, bundle, files, output, values, host, errors.
Must never come in: command-line parsing, printing.
"""
