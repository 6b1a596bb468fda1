"""The scripts that change a board. Each can be interrupted and run again; each runs as root."""

from __future__ import annotations

from server.flash.payload import SERVICES, UNITS, WANTS
from server.flash.places import FOLDER, HOME, SLOTS

_INCOMING = "/opt/.covey-incoming"
COMPLETE = "complete"
"""The last entry of what is sent: without it the connection broke off."""

_BOTH = " ".join(SERVICES)
_HEAD = "set -eu\nLC_ALL=C; export LC_ALL; PATH=$PATH:/usr/sbin:/sbin\n"

RECEIVE = f"""\
{_HEAD}umask 022
rm -rf {_INCOMING}
mkdir -p -m 700 {_INCOMING}
trap 'rm -rf {_INCOMING}' EXIT
trap 'exit 1' HUP INT TERM PIPE
tar -xf - -C {_INCOMING} --no-same-owner
if [ ! -e {_INCOMING}/{COMPLETE} ]; then echo "what was sent did not come whole" >&2; exit 1; fi
rm {_INCOMING}/{COMPLETE}
systemctl stop {_BOTH} 2>/dev/null || true
mkdir -p {FOLDER} {HOME}/data
rm -f {FOLDER}/set-up
cd {_INCOMING}
find . ! -type d | while IFS= read -r path; do
    mkdir -p "$(dirname "/$path")"
    mv -fT "$path" "/$path"
done
sync
"""
"""Takes a tar file as its input, and puts its files in their places once all of it is there."""

START = f"""\
{_HEAD}systemctl daemon-reload
systemctl enable -q {_BOTH}
if ! systemctl start {SERVICES[0]}; then
    journalctl -u {SERVICES[0]} -n 20 --no-pager -o cat >&2 2>/dev/null || true
    exit 3
fi
systemctl restart --no-block {SERVICES[1]}
"""
"""Sets the board up, which joins the fleet where it has a token, and starts the device.

It is not waited for: one without rows is not ready before it has some."""

STOP = f"{_HEAD}systemctl disable -q --now {_BOTH} 2>/dev/null || systemctl stop {_BOTH} 2>/dev/null || true\n"

REMOVE = f"""\
{_HEAD}for unit in {_BOTH}; do rm -f {WANTS}/$unit {UNITS}/$unit; done
rm -rf {FOLDER} {SLOTS} {_INCOMING}
systemctl daemon-reload
"""
"""Removes all but the service's home."""

PURGE = f"""\
{_HEAD}rm -rf {HOME}
if id covey >/dev/null 2>&1; then userdel covey; fi
"""
"""Removes what is the device's own: identity, adapters, rows; and the user."""
