"""A device's identity: its key, its certificate, and how it joins a fleet with a one-time token.

The private key is made here and never leaves the device; what is written survives a power cut between any two steps.

May import: releases, network, files, values, errors.
Must never come in: plans, rounds, private rows, the server's ledger.
"""
