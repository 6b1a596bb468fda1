"""What may be loaded at all: releases that the fleet's release key has signed, and none older than one already taken.

The library of signatures is loaded by those alone who have pinned keys.

May import: files, values, errors.
Must never come in: networks, bundles' contents, certificates, plans.
"""
