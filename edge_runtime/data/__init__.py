"""The private rows: read and checked line by line, encoded as tokens, ordered by seed, padded to batches.

Rows never leave this room in a message or an error text.

May import: bundle, files, values, errors.
Must never come in: the network, protocol, engines.
"""
