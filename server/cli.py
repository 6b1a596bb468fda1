"""``covey``: the operator's commands. Each side adds its own through the entry point group ``covey.commands``."""

from __future__ import annotations

import argparse
import os
from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime import __version__, output
from edge_runtime.commands.completion import add_completion
from edge_runtime.host.threads import limit_libraries, usable_threads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.commands.shared_options import Commands

COMMAND_GROUP = "covey.commands"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covey``; returns the exit code (errors.py of each side lists them)."""
    if argv is None:  # a process of its own: before NumPy is loaded, which counts the machine's cores
        usable = usable_threads().count
        limit_libraries(os.environ, blas=usable, tokenizers=usable)
    parser = argparse.ArgumentParser(
        prog="covey",
        description="Fine-tune language models on a fleet of small devices without moving their data.",
    )
    parser.add_argument("--version", action="version", version=f"covey {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry_point in sorted(metadata.entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name):
        entry_point.load()(commands)
    add_completion(commands, parser)
    return output.main(parser, argv)


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the server's commands."""
    from edge_runtime.commands.bundle import add_bundle_commands
    from server.commands.advise import add_advise_command
    from server.commands.backup import add_backup_commands
    from server.commands.demo import add_demo_command
    from server.commands.devices import add_device_commands
    from server.commands.flash import add_flash_commands
    from server.commands.fleet import add_fleet_commands
    from server.commands.jobs import add_job_commands
    from server.commands.profile_commands import add_profile_commands
    from server.commands.provision import add_provision_commands
    from server.commands.rollout import add_rollout_commands
    from server.commands.scale import add_scale_command
    from server.commands.serve import add_serve_commands
    from server.commands.server import add_server_commands
    from server.commands.shared_options import default_state_dir
    from server.commands.simulate import add_simulate
    from server.commands.stopping import stop_on_signals
    from server.commands.swarm import add_swarm_command

    add_bundle_commands(commands)
    add_serve_commands(commands)
    add_fleet_commands(commands)
    add_flash_commands(commands)
    add_provision_commands(commands)
    add_demo_command(commands)
    add_simulate(commands, lambda: stop_on_signals().is_set)
    add_swarm_command(commands)
    add_profile_commands(commands, default_state_dir())
    add_advise_command(commands)
    add_scale_command(commands)
    add_job_commands(commands)
    add_device_commands(commands)
    add_rollout_commands(commands)
    add_server_commands(commands)
    add_backup_commands(commands)


if __name__ == "__main__":
    raise SystemExit(main())
