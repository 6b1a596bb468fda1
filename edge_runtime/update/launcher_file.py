"""Packs the launcher into one file that needs nothing of any version of Covey: only Python's standard library."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from edge_runtime.files.atomic import write_atomically

LAUNCHER_FILE = "launcher.pyz"
PACKED = (
    "edge_runtime/__init__.py",
    "edge_runtime/errors.py",
    "edge_runtime/files/__init__.py",
    "edge_runtime/files/aside.py",
    "edge_runtime/files/atomic.py",
    "edge_runtime/update/__init__.py",
    "edge_runtime/update/device_process.py",
    "edge_runtime/update/heartbeat.py",
    "edge_runtime/update/launcher.py",
    "edge_runtime/update/requests.py",
    "edge_runtime/update/rules.py",
    "edge_runtime/update/slots.py",
    "edge_runtime/update/state.py",
)
_MAIN = "from edge_runtime.update.launcher import main\n\nraise SystemExit(main())\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def launcher_bytes() -> bytes:
    """Return the launcher as a zip application; equal bytes for equal sources."""
    sources = Path(__file__).parents[2]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in PACKED:
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), (sources / name).read_bytes(), zipfile.ZIP_DEFLATED)
        archive.writestr(zipfile.ZipInfo("__main__.py", _LONG_AGO), _MAIN, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def write_launcher(root: Path) -> Path:
    """Write the launcher into a folder of slots, in one atomic step; return its path.

    Raises:
        StorageError: the disk is full or not writable.
    """
    path = root / LAUNCHER_FILE
    write_atomically(path, launcher_bytes())
    return path
