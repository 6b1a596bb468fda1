"""Sets up a folder of slots: the first version in slot a, and the launcher beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import UpdateError, storage_error
from edge_runtime.files.writable import check_writable
from edge_runtime.update.dependencies import packages_for
from edge_runtime.update.install import Supply, fill_slot
from edge_runtime.update.launcher_file import LAUNCHER_FILE, launcher_bytes, write_launcher
from edge_runtime.update.slots import INSTALL_LOCK, Installed, installed, link_slot, locked
from edge_runtime.update.state import SLOTS, State, read_state, write_state
from edge_runtime.update.wheel_file import read_wheel

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class First:
    """What a folder of slots begins with.

    Attributes:
        wheel: the wheel of the first version.
        sha256: its SHA-256, in hex; None: not checked.
        config: ``edge.toml``, with which it checks itself; None: it is only loaded.
        also: further packages that are taken over from the environment of this process, as the configured runtime.
    """

    wheel: Path
    sha256: str | None = None
    config: Path | None = None
    also: Sequence[str] = ()


def set_up(root: Path, first: First, supply: Supply) -> Installed:
    """Make a folder of slots, install the first version and write the launcher. It goes on where it was cut off.

    The packages that the wheel needs are taken over from the environment of this process where they fit.

    Raises:
        UpdateError: there is a version already, or the wheel cannot be installed; see install_wheel.
        StorageError: too little space, or a disk that cannot be written.
    """
    wheel, root = read_wheel(first.wheel, first.sha256), root.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, root) from error
    check_writable(root, "--root of covey-edge update")
    with locked(root, INSTALL_LOCK, "a version is being installed there", "wait until that has ended"):
        if read_state(root) is not None:
            raise UpdateError(
                f"{root} is set up already",
                "install another version with: covey-edge update install WHEEL; or, to renew the launcher alone, leave "
                "out the wheel",
            )
        packages = packages_for([*wheel.requirements, *first.also], sys.path)
        python = Path(sys.executable)
        found = fill_slot(wheel, root, SLOTS[0], python, packages, config=first.config, supply=supply)
        write_launcher(root)
        link_slot(root, found.slot)
        write_state(root, State(found.slot))  # last: what is set up counts from here on
    return found


def renew_launcher(root: Path) -> bool:
    """Write the launcher of this version of Covey into a folder that is set up; it runs from the service's next start.

    Returns:
        Whether it differs from the one that was there.

    Raises:
        UpdateError: the folder is not set up.
        StorageError: the disk is full or not writable.
    """
    if not installed(root):
        raise UpdateError(f"{root} holds no version of Covey", "name the wheel to begin with")
    path = root / LAUNCHER_FILE
    if path.is_file() and path.read_bytes() == launcher_bytes():
        return False
    write_launcher(root)
    return True
