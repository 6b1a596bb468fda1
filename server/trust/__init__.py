"""The fleet's authority: its keys and certificates, join tokens, and who gets a certificate for which name.

Decides from the ledger and a token; the private keys stay in ``trust/`` of the state directory, with mode 0600.

May import: storage; of edge_runtime: trust, signing, releases, network, protocol, files, output, values, errors.
Must never come in: rounds, jobs, SQL, printing, the devices' private keys.
"""
