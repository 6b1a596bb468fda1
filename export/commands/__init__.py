"""The subcommands that the export side adds to ``covey``, one file per subcommand.

They import torch and transformers when they run, so that ``covey --help`` stays fast and needs neither.
May import: every other room of export, and edge_runtime.
"""
