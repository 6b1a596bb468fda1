"""Signs what this member publishes, and refuses what others did not sign, signed otherwise, or said before.

A transport around the transport: whoever reads and writes messages knows nothing of it.

May import: network, protocol, files, errors.
Must never come in: messages' meaning, training, the ledger.
"""
