"""What other processes ask the launcher for, a switch or a way back, and what they learn of the last one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError, UpdateError
from edge_runtime.files.atomic import write_atomically
from edge_runtime.update.rules import previous_version
from edge_runtime.update.slots import INSTALL_LOCK, LAUNCHER_LOCK, PATIENCE_S, LockedError, installed, locked, other
from edge_runtime.update.state import KINDS, SLOTS, Request, State, read_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.update.slots import Installed
    from edge_runtime.update.state import Outcome

REQUEST_FILE = "request.json"
ROOT_VARIABLE = "COVEY_UPDATE_ROOT"
"""The environment variable in which the launcher tells the device its folder of slots."""
SETUP = "set up the two slots and the launcher: covey-edge update setup WHEEL --root DIR --config edge.toml"


def update_root(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of slots of this process; None where no launcher has started it: it cannot be updated."""
    found = environment.get(ROOT_VARIABLE)
    return Path(found) if found else None


def request_switch(root: Path, found: Installed | None = None) -> str:
    """Ask the launcher to switch to the version that install_wheel has put into the other slot.

    The launcher looks every half second. It sends SIGTERM to the device that runs, which ends as it always does (a
    round in progress is abandoned: ask between rounds), and starts the other version on trial.

    Args:
        root: the folder of the slots.
        found: what install_wheel has returned; None: whatever is in the other slot.

    Returns:
        The request's id.

    Raises:
        UpdateError: there is no launcher, nothing is installed in the other slot, or a switch is already under way.
        StorageError: the request cannot be written.
    """
    state = settled_state(root)
    here = installed(root).get(other(state.current))
    if here is None or (found is not None and here != found):
        raise UpdateError("no new version is installed", "install one: covey-edge update install WHEEL")
    return _ask(root, "update", here)


def request_rollback(root: Path) -> str:
    """Ask the launcher to go back to the version before; a trial under way ends as failed. Returns the request's id.

    Raises:
        UpdateError: there is no launcher, or no version to go back to.
        StorageError: the request cannot be written.
    """
    state, slots = known_state(root), installed(root)
    here = previous_version(state, slots) if state.trial is None else slots.get(state.trial.back)
    if here is None:
        raise UpdateError(
            "there is no version before this one", "install the version that you want: covey-edge update install WHEEL"
        )
    return _ask(root, "rollback", here)


def last_outcome(root: Path) -> Outcome | None:
    """Return how the last switch ended, or that it is on trial; None where there was none.

    Raises:
        UpdateError: there are no slots here.
        StorageError: the state cannot be read.
    """
    return known_state(root).outcome


def known_state(root: Path) -> State:
    """Return the launcher's state.

    Raises:
        UpdateError: there are no slots here.
        StorageError: it cannot be read.
    """
    state = read_state(root)
    if state is None:
        raise UpdateError(f"{root} holds no slots that a launcher could switch", SETUP)
    return state


def settled_state(root: Path) -> State:
    """Return the launcher's state, of which nothing is about to change.

    Raises:
        UpdateError: there are no slots here, a version is on trial, or a switch was asked for.
        StorageError: it cannot be read.
    """
    state = known_state(root)
    if state.trial is not None:
        raise UpdateError(
            "a new version is on trial", "wait until it is accepted or rolled back: covey-edge update status"
        )
    if (request := read_request(root)) is not None and request.id != state.request:
        raise UpdateError(
            "a switch was asked for, and the launcher has not taken it yet", "start the launcher, or wait"
        )
    return state


def read_request(root: Path) -> Request | None:
    """Return what the launcher is asked for; None: nothing, or the file is no request."""
    try:
        table = json.loads((root / REQUEST_FILE).read_bytes())
        request = Request(*(str(table[name]) for name in ("id", "kind", "slot", "sha256")))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return request if request.kind in KINDS and request.slot in SLOTS else None


def launcher_runs(root: Path) -> bool:
    """Whether a launcher is at work on this folder."""
    try:
        with locked(root, LAUNCHER_LOCK, "", ""):
            return False
    except LockedError:
        return True


def _ask(root: Path, kind: str, here: Installed) -> str:
    request = Request(os.urandom(8).hex(), kind, here.slot, here.sha256)
    busy = "a version is being installed"
    with locked(root, INSTALL_LOCK, busy, "wait until that has ended, and ask again", PATIENCE_S):
        write_atomically(root / REQUEST_FILE, json.dumps(asdict(request)).encode())
    return request.id


def remove_request(root: Path) -> None:
    """Remove the request, which the launcher has taken.

    Raises:
        StorageError: it cannot be removed.
    """
    try:
        (root / REQUEST_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot remove {root / REQUEST_FILE}: {error.strerror}", "check its owner") from error
