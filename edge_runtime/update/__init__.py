"""Updates of Covey itself: a wheel goes into the other of two environments, and goes back if it fails.

The launcher starts the version that is current, watches a new one, and returns to the one before. It runs from one
file (launcher_file.py) with the standard library alone, so that no version of Covey can break it.

May import: files, errors.
Must never come in: plans, messages; in what the launcher imports, anything but the standard library, files and errors.
"""
