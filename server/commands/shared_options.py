"""Options that several commands of the server share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

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
