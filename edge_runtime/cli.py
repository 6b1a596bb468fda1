"""``covey-edge``: the commands of a device. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from edge_runtime import __version__, output
from edge_runtime.commands.completion import add_completion
from edge_runtime.commands.doctor import add_doctor_command

if TYPE_CHECKING:
    from collections.abc import Sequence


Add = Callable[["argparse._SubParsersAction[argparse.ArgumentParser]"], None]


def _all_commands() -> list[Add]:
    """Return what adds each command. Doctor does without the others, whose NumPy may be what ends the process."""
    from edge_runtime.commands.bundle import add_bundle_commands
    from edge_runtime.commands.data import add_data_commands
    from edge_runtime.commands.join import add_join_commands
    from edge_runtime.commands.predict import add_predict_command
    from edge_runtime.commands.profile_command import add_profile_command
    from edge_runtime.commands.run import add_run_command
    from edge_runtime.commands.setup import add_setup_command
    from edge_runtime.commands.update import add_update_commands
    from edge_runtime.commands.version import add_version_commands

    return [
        add_run_command,
        add_join_commands,
        add_setup_command,
        add_predict_command,
        add_version_commands,
        add_data_commands,
        add_profile_command,
        add_doctor_command,
        add_bundle_commands,
        add_update_commands,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covey-edge``; returns the exit code (errors.py lists them)."""
    parser = argparse.ArgumentParser(
        prog="covey-edge", description="Train and predict on this device. The data stays here; only scalars leave."
    )
    parser.add_argument("--version", action="version", version=f"covey-edge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    words = sys.argv[1:] if argv is None else argv
    for add in [add_doctor_command] if words[:1] == ["doctor"] else _all_commands():
        add(commands)
    add_completion(commands, parser)
    return output.main(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
