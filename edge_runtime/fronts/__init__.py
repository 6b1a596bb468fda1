"""Frozen fronts: runs the front block once for each row, and keeps what it gives on disk.

``frozen_engine.py`` is an engine whose front is a lookup. ``frame.py`` makes what crosses the cut and depends on the
rows' lengths alone; ``row_file.py`` is the file, ``front_folder.py`` bounds all files together, ``front_key.py`` says
what a file belongs to.

May import: engines, data, bundle, values, errors.
Must never come in: plans, rounds, the network.
"""
