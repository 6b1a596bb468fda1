"""Frozen fronts: runs the front block once for each row, and keeps what it gives on disk.

``kept_front.py`` is a front that is a lookup, ``frozen_engine.py`` an engine with one, and ``frozen_training.py`` gives
gradients behind it. ``frame.py`` makes what crosses the cut and depends on the rows' lengths alone, and
``kept_frame.py`` keeps it; ``row_file.py`` is the file, ``front_folder.py`` bounds all files together,
``front_key.py`` says what a file belongs to.

May import: engines, data, bundle, host, values, errors.
Must never come in: plans, rounds, the network.
"""
