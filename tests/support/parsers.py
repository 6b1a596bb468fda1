"""The parsers of ``covey`` and ``covey-edge``, for tests that look at command lines without running them."""

from __future__ import annotations

import argparse
from importlib import metadata

from edge_runtime import cli as edge_cli
from edge_runtime.commands.completion import add_completion
from server.cli import COMMAND_GROUP


def parser_of(program: str) -> argparse.ArgumentParser:
    """Return the parser of a program with all its commands."""
    assert program in ("covey", "covey-edge"), program
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--version", action="version", version="x")
    commands = parser.add_subparsers(required=True)
    if program == "covey":
        for entry_point in metadata.entry_points(group=COMMAND_GROUP):
            entry_point.load()(commands)
    else:
        for add in edge_cli._all_commands():
            add(commands)
    add_completion(commands, parser)
    return parser
