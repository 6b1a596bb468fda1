"""What a board is and has, found by two small scripts that print lines of KEY=VALUE and change nothing."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ProtocolError
from edge_runtime.update.slots import MARKER_FILE
from server.flash.payload import NOTE, SERVICES, SETUP, UNITS
from server.flash.places import BEGIN, FOLDER, HOME, LAUNCHER, RUNNING, SLOTS

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKED_FILES = (SETUP, LAUNCHER, BEGIN, *(f"{UNITS}/{name}" for name in SERVICES))
"""Files on a board whose contents tell whether it has what it would get."""

PROBE = r"""
LC_ALL=C; export LC_ALL; PATH=$PATH:/usr/sbin:/sbin
echo "uid=$(id -u)"
echo "machine=$(uname -m)"
if [ -r /etc/os-release ]; then
    ( . /etc/os-release; echo "system=$PRETTY_NAME"; echo "ids=$ID $ID_LIKE" )
fi
echo "architecture=$(dpkg --print-architecture 2>/dev/null)"
echo "glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null)"
[ -d /run/systemd/system ] && echo "systemd=yes"
if [ "$(id -u)" = 0 ]; then echo "sudo=root"
elif command -v sudo >/dev/null 2>&1; then
    if sudo -n true 2>/dev/null; then echo "sudo=free"; else echo "sudo=asks"; fi
fi
echo "default_python=$(/usr/bin/python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
for python in /usr/bin/python3.[0-9]*; do
    case $python in *-*|*m) continue;; esac
    if "$python" -c 'import ctypes, sqlite3, ssl, uuid, zipfile' 2>/dev/null; then
        echo "python=${python#/usr/bin/python}"
    else
        echo "bare_python=${python#/usr/bin/python}"
    fi
done
free() { df -Pk "$1" 2>/dev/null | awk 'NR == 2 { print $4 }'; }
opt=/opt; [ -d $opt ] || opt=/
echo "opt_free_kib=$(free $opt)"
echo "var_free_kib=$(free /var)"
disk() { df -P "$1" 2>/dev/null | awk 'NR == 2 { print $1 }'; }
echo "opt_disk=$(disk $opt)"
echo "var_disk=$(disk /var)"
echo "now_s=$(date +%s)"
echo "package=$(dpkg-query -W -f '${Status}' covey-edge 2>/dev/null)"
echo "end=public"
"""
"""As the user who logs in."""

PROBE_AS_ROOT = f"""
LC_ALL=C; export LC_ALL; PATH=$PATH:/usr/sbin:/sbin
[ -e {NOTE} ] && echo "note=$(base64 -w0 {NOTE})"
[ -e {HOME}/edge.toml ] && echo "edge=$(base64 -w0 {HOME}/edge.toml)"
[ -e {HOME}/edge-trust/cert.pem ] && echo "certificate=yes"
[ -e {HOME}/edge-trust/ca.pem ] && echo "authority=$(base64 -w0 {HOME}/edge-trust/ca.pem)"
[ -e {RUNNING}/{MARKER_FILE} ] && echo "running=$(base64 -w0 {RUNNING}/{MARKER_FILE})"
[ -e {FOLDER}/set-up ] && echo "set_up=yes"
[ -d {FOLDER} ] || [ -d {SLOTS} ] && echo "folder=yes"
[ -d {HOME} ] && echo "home=yes"
id covey >/dev/null 2>&1 && echo "user=yes"
for file in {" ".join(CHECKED_FILES)}; do
    [ -e "$file" ] && echo "file=$(sha256sum "$file")"
done
for file in {HOME}/data/rows.*; do
    [ -e "$file" ] && echo "rows=$(sha256sum "$file")"
done
systemctl is-enabled -q {SERVICES[1]} 2>/dev/null && echo "enabled=yes"
case $(systemctl is-active {SERVICES[1]} 2>/dev/null) in active|activating|reloading) echo "active=yes";; esac
echo "end=private"
"""
"""As root: the service's folder is not everybody's. No rows leave the board, only the hash of their file."""


@dataclass(frozen=True)
class Facts:
    """What a board is and has.

    Attributes:
        words: what the scripts printed, by key; the last value of each.
        pythons: versions of Python in /usr/bin that have their whole standard library.
        bare_pythons: those that have not.
        files: SHA-256 of the files that were checked, by path.
        rows: SHA-256 of the files with rows, by path.
        note: what Covey's note says; empty: there is none, or it cannot be read.
        edge: the device's configuration file; None: there is none.
        clock_off_s: by how many seconds its clock is ahead of this machine's.
    """

    words: Mapping[str, str]
    pythons: tuple[str, ...] = ()
    bare_pythons: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, str] = field(default_factory=dict)
    note: Mapping[str, Any] = field(default_factory=dict)
    edge: str | None = None
    clock_off_s: float = 0.0

    def has(self, key: str) -> bool:
        """Whether a key was printed with a value."""
        return bool(self.words.get(key))

    def number(self, key: str) -> int:
        """Return a number; 0 where the board did not say it."""
        word = self.words.get(key, "")
        return int(word) if word.isdecimal() else 0


def read_facts(text: str, now_s: float) -> Facts:
    """Return the facts in what the scripts printed, one after the other; lines of a chatty login are passed over.

    Args:
        text: what they printed.
        now_s: this machine's time, in seconds since 1970.

    Raises:
        ProtocolError: the first script did not come to its end.
    """
    lines: list[tuple[str, str]] = []
    for line in text.splitlines():
        key, found, value = line.partition("=")
        if found and key.replace("_", "").isalpha():
            lines.append((key, value.strip()))
    if ("end", "public") not in lines:
        raise ProtocolError("the board did not say what it is", "log in by hand: does its shell print an error?")
    words = dict(lines)
    return Facts(
        words,
        tuple(value for key, value in lines if key == "python"),
        tuple(value for key, value in lines if key == "bare_python"),
        dict(_hash(value) for key, value in lines if key == "file"),
        dict(_hash(value) for key, value in lines if key == "rows"),
        _note(words.get("note", "")),
        decoded.decode(errors="replace") if (decoded := _decoded(words.get("edge", ""))) is not None else None,
        int(words["now_s"]) - now_s if words.get("now_s", "").isdecimal() else 0.0,
    )


def running_version(facts: Facts) -> str | None:
    """Return the version of Covey in the slot that runs, which a rollout may have brought; None: there is none."""
    try:
        found = json.loads(_decoded(facts.words.get("running", "")) or b"null")
    except ValueError:
        return None
    return str(found["version"]) if isinstance(found, dict) and "version" in found else None


def authority_pem(facts: Facts) -> bytes | None:
    """Return the certificate of the authority that the device on the board trusts; None: there is none."""
    return _decoded(facts.words.get("authority", ""))


def _hash(line: str) -> tuple[str, str]:
    digest, _, path = line.partition("  ")
    return path.strip(), digest.removeprefix("\\")


def _decoded(word: str) -> bytes | None:
    try:
        return base64.b64decode(word, validate=True) if word else None
    except (binascii.Error, ValueError):
        return None


def _note(word: str) -> dict[str, Any]:
    try:
        found = json.loads(_decoded(word) or b"{}")
    except ValueError:  # also UnicodeDecodeError: a note that is damaged is written anew
        return {}
    return found if isinstance(found, dict) else {}
