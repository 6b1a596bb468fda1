"""Options that several commands of the server share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.ray_work.options import RayOptions

Commands = argparse._SubParsersAction
"""What argparse's ``add_subparsers`` returns: commands are added to it."""


def default_state_dir() -> Path:
    """Return the server's default state directory: ``$XDG_STATE_HOME/covey``, else ``~/.local/state/covey``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "covey"


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Add ``--state-dir`` to a command."""
    parser.add_argument(
        "--state-dir", type=Path, default=default_state_dir(), help="the server's state (default: %(default)s)"
    )


def add_ray(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--workers`` and ``--ray-address`` to a command; see ray_of.

    Args:
        parser: the command's.
        what: what the workers do.
    """
    group = parser.add_argument_group("several processes or machines", "with Ray; same results (docs/ray.md)")
    group.add_argument("--workers", type=int, metavar="N", help=f"{what} in N processes on this machine")
    group.add_argument("--ray-address", metavar="HOST:PORT", help=f"{what} on all CPUs of a Ray cluster")


def ray_of(args: argparse.Namespace) -> RayOptions | None:
    """Return what add_ray's options say; None: neither is given.

    Raises:
        ConfigError: they do not fit together.
    """
    from server.ray_work.options import ray_options

    return ray_options(args.workers, args.ray_address)
