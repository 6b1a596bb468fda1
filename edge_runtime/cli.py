"""``covey-edge``: the commands of a device. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from edge_runtime import __version__, output
from edge_runtime.commands.bundle import add_bundle_commands
from edge_runtime.commands.data import add_data_commands
from edge_runtime.commands.doctor import add_doctor_command
from edge_runtime.commands.predict import add_predict_command
from edge_runtime.commands.profile_command import add_profile_command
from edge_runtime.commands.run import add_run_command

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covey-edge``; returns the exit code (errors.py lists them)."""
    parser = argparse.ArgumentParser(
        prog="covey-edge", description="Train and predict on this device. The data stays here; only scalars leave."
    )
    parser.add_argument("--version", action="version", version=f"covey-edge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_run_command(commands)
    add_predict_command(commands)
    add_data_commands(commands)
    add_profile_command(commands)
    add_doctor_command(commands)
    add_bundle_commands(commands)
    return output.main(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
