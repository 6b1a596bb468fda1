"""Options that several commands of the server share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

Commands = argparse._SubParsersAction


def default_state_dir() -> Path:
    """Return where the server keeps its state: ``$XDG_STATE_HOME/covey``, by default ``~/.local/state/covey``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "covey"


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Give a command ``--state-dir``."""
    parser.add_argument(
        "--state-dir", type=Path, default=default_state_dir(), help="the server's state (default: %(default)s)"
    )
