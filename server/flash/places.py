"""Where Covey is on a board; and the script that makes an environment the only version in the launcher's slots."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.update.requests import REQUEST_FILE
from edge_runtime.update.slots import CURRENT, INSTALL_LOCK, MARKER_FILE, other, slot_path
from edge_runtime.update.state import SLOTS as _NAMES
from edge_runtime.update.state import STATE_FILE

FOLDER = "/opt/covey"
"""What belongs to root: scripts, the launcher, what the card or the package has brought."""

HOME = "/var/lib/covey"
"""The home of the service's user: configuration, identity, state and rows."""

SLOTS = f"{HOME}/update"
"""The launcher's slots. They belong to the service's user, who installs what the fleet rolls out."""

FIRST_SLOT = _NAMES[0]
"""The slot that a card, a package or ``covey provision`` fills."""

FIRST = slot_path(Path(SLOTS), FIRST_SLOT).name
_OTHER = slot_path(Path(SLOTS), other(FIRST_SLOT)).name

RUNNING = f"{SLOTS}/{CURRENT}"
"""The environment that runs."""

LAUNCHER = f"{FOLDER}/launcher.pyz"
BEGIN = f"{FOLDER}/begin.sh"


def launch(python: str) -> str:
    """Return the command of the service: the launcher, on the system's Python of a version, as ``3.11``."""
    return f"/usr/bin/python{python} -I {LAUNCHER} --root {SLOTS} --config {HOME}/edge.toml"


BEGIN_SCRIPT = f"""\
#!/bin/sh
# begin.sh ENVIRONMENT: makes an archive or a folder with an environment the only version of Covey of this board.
# User covey runs it while the service is stopped; it may be interrupted, and run again.
set -eu
umask 022
slots={SLOTS}
mkdir -p "$slots"
exec 9>>"$slots/{INSTALL_LOCK}"
flock -w 600 9 || {{ echo "a version of Covey is being installed: wait until that has ended" >&2; exit 1; }}
rm -rf "$slots/fresh"
mkdir "$slots/fresh"
if [ -d "$1" ]; then
    cp -R "$1" "$slots/fresh/{FIRST}"
else
    tar -xf "$1" -C "$slots/fresh" --no-same-owner
fi
"$slots/fresh/{FIRST}/bin/python3" -I -m compileall -q -j 0 "$slots/fresh/{FIRST}/lib" || true
[ -e "$slots/fresh/{FIRST}/{MARKER_FILE}" ] || {{ echo "$1 is no environment of Covey, or not whole" >&2; exit 1; }}
sync
# What is whole has its marker: it goes first, and comes with the rename.
rm -f "$slots/{FIRST}/{MARKER_FILE}"
rm -rf "$slots/{FIRST}"
mv "$slots/fresh/{FIRST}" "$slots/{FIRST}"
rm -rf "$slots/{CURRENT}.tmp"
ln -s {FIRST} "$slots/{CURRENT}.tmp"
mv -fT "$slots/{CURRENT}.tmp" "$slots/{CURRENT}"
# Without them the launcher begins with what the link names.
rm -f "$slots/{STATE_FILE}" "$slots/{REQUEST_FILE}"
rm -f "$slots/{_OTHER}/{MARKER_FILE}"
rm -rf "$slots/{_OTHER}" "$slots/fresh"
sync
"""
