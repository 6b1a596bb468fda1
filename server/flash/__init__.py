"""Makes card images for boards: a stock image gets Covey's device side, a join token, and settings for its first boot.

Works on image files without root and without loop devices; only ``--write`` touches a disk.

May import: nothing of its side; of edge_runtime: update, trust, files, errors.
Must never come in: the ledger, rounds, jobs, printing.
"""
