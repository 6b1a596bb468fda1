"""The commands that the export side adds to ``covey``: export, finish and probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from export.commands.export import add_export_command
from export.commands.finish import add_finish_command
from export.commands.probe import add_probe_command

if TYPE_CHECKING:
    import argparse


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export``, ``finish`` and ``probe``."""
    add_export_command(commands)
    add_finish_command(commands)
    add_probe_command(commands)
