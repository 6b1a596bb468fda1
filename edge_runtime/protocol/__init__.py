"""The contracts between device and server: everything that both sides say and agree on.

Messages, topics, the step rule, layer dropout, privacy, profiles, round logs and deltas. A change here is a change of
the wire format: golden encodings pin every struct.

May import: bundle, files, output, values, errors.
Must never come in: sockets, brokers, training, the ledger.
"""
