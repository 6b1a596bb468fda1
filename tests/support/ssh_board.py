"""A board that is reached over SSH: an sshd of its own, in an overlay of this machine's root, with its own pids.

What is written there is in a folder of the test; the end of the first process ends all others. A stand-in for systemctl
really starts what the units say, as the user that they say.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleets import free_port, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

SSHD = "/usr/sbin/sshd"

SYSTEMCTL = r"""#!/usr/bin/python3
# A stand-in for systemctl: starts and stops the processes of units, and records what it was told.
import configparser, json, os, pathlib, pwd, signal, subprocess, sys, time
UNITS, RUN = pathlib.Path("/etc/systemd/system"), pathlib.Path("/run/stand-in")
RUN.mkdir(exist_ok=True)
words = [word for word in sys.argv[1:] if not word.startswith("-")]
flags = [word for word in sys.argv[1:] if word.startswith("-")]
with (RUN / "calls").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\n")

def unit(name):
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str
    if not (UNITS / name).exists():
        sys.exit(5)
    parser.read(UNITS / name)
    return parser

def pid_of(name):
    try:
        pid = int((RUN / name).read_text())
        os.kill(pid, 0)
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return None if state == "Z" else pid
    except (OSError, ValueError):
        return None

def stop(name):
    pid = pid_of(name)
    if pid is not None:
        os.killpg(pid, signal.SIGTERM)
        until = time.monotonic() + 60
        while pid_of(name) is not None and time.monotonic() < until:
            time.sleep(0.05)
    (RUN / name).unlink(missing_ok=True)

def start(name):
    if pid_of(name) is not None:
        return
    found = unit(name)
    condition = found["Unit"].get("ConditionPathExists", "")
    is_there = os.path.exists(condition.removeprefix("!"))
    if condition and is_there == condition.startswith("!"):
        return
    service = found["Service"]
    command = service["ExecStart"].split()
    home = service.get("WorkingDirectory", "/")
    user = service.get("User")
    if user:
        command = ["runuser", "-u", user, "--", *command]
    with (RUN / f"{name}.log").open("ab") as log:
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(command, cwd=home, stdin=nothing, stdout=log, stderr=log, start_new_session=True)
    if service.get("Type") == "oneshot":
        if process.wait():
            sys.exit(1)
    else:
        (RUN / name).write_text(str(process.pid))

command, names = words[0], words[1:]
for name in names:
    link = UNITS / "multi-user.target.wants" / name
    if command == "is-active":
        print("inactive" if pid_of(name) is None else "active")
        sys.exit(0 if pid_of(name) is not None else 3)
    if command == "is-enabled":
        sys.exit(0 if link.is_symlink() else 1)
    if command == "enable":
        unit(name)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(UNITS / name)
    if command == "disable":
        unit(name)
        link.unlink(missing_ok=True)
    if command in ("stop", "restart") or (command == "disable" and "--now" in flags):
        stop(name)
    if command in ("start", "restart"):
        start(name)
"""

JOURNALCTL = """#!/bin/sh
while [ $# -gt 0 ]; do
    if [ "$1" = -u ]; then unit=$2; fi
    shift
done
tail -n 20 "/run/stand-in/$unit.log"
"""

_BOOT = """
set -e
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs -o mode=755 tmpfs "$1/root/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/root/tmp"
mkdir -p "$1/root/run/systemd/system" "$1/root/run/sshd"
chmod 755 "$1/root"
exec chroot "$1/root" /usr/sbin/sshd -D -e -f /etc/ssh/board_config
"""


@dataclass
class Board:
    """A board.

    Attributes:
        root: its files that differ from this machine's.
        port: where its sshd listens.
        key: a private key with which ``root`` and ``keeper`` (who may use sudo) may log in.
        known_hosts: a file with its host key.
    """

    root: Path
    port: int
    key: Path
    known_hosts: Path
    process: subprocess.Popen[bytes]

    @property
    def flags(self) -> list[str]:
        """Flags of ``covey provision ssh``."""
        return [
            *("--port", str(self.port), "--identity", str(self.key), "--ssh-config", "/dev/null", "--batch"),
            *("--ssh-option", f"UserKnownHostsFile={self.known_hosts}", "--ssh-option", "IdentitiesOnly=yes"),
        ]

    def shell(self, script: str, user: str = "root", *, check: bool = True) -> str:
        """Run a script on the board; return what it printed."""
        done = subprocess.run(
            [
                *("ssh", "-F", "/dev/null", "-T", "-p", str(self.port), "-i", str(self.key), "-o", "BatchMode=yes"),
                *(
                    "-o",
                    f"UserKnownHostsFile={self.known_hosts}",
                    "-o",
                    "IdentitiesOnly=yes",
                    f"{user}@127.0.0.1",
                    script,
                ),
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def calls(self) -> list[list[str]]:
        """Return what systemctl was told that changes something."""
        lines = self.shell("cat /run/stand-in/calls 2>/dev/null || true").splitlines()
        return [call for line in lines if not (call := json.loads(line))[0].startswith("is-")]


def require_board() -> None:
    """Skip where no board can be made."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mount, chroot")
    for program, package in ((SSHD, "openssh-server"), ("ssh", "openssh-client"), ("sudo", "sudo")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt install {package}")
    if not Path("/usr/bin/python3").exists() or not Path("/etc/debian_version").exists():
        pytest.skip("needs a Debian with its own Python: apt install python3")
    with tempfile.TemporaryDirectory() as folder:
        probe = (
            'mount -t tmpfs none "$0" && cd "$0" && mkdir u w m && '
            "mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w m"
        )
        done = subprocess.run(["unshare", "-m", "sh", "-c", probe, folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("needs overlay mounts: a kernel and a container that allow them")


@contextlib.contextmanager
def ssh_board(folder: Path) -> Iterator[Board]:
    """Run a board until the block ends; its files are in memory, and gone then."""
    # Upper layers must not be on an overlay themselves, which /tmp of a container may be: /dev/shm is memory.
    base = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="covey-board-"))
    for name in ("upper/usr/bin", "upper/etc/ssh", "upper/etc/sudoers.d", "work", "root"):
        (base / name).mkdir(parents=True)
    upper, port = base / "upper", free_port()
    folder.mkdir(parents=True, exist_ok=True)
    for path in (folder / "key", upper / "etc/ssh/board_host_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    (upper / "etc/ssh/authorized").write_text((folder / "key.pub").read_text())
    (upper / "etc/ssh/board_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey /etc/ssh/board_host_key\n"
        "AuthorizedKeysFile /etc/ssh/authorized\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
    )
    for name, text in (("systemctl", SYSTEMCTL), ("journalctl", JOURNALCTL)):
        (upper / "usr/bin" / name).write_text(text)
        (upper / "usr/bin" / name).chmod(0o755)
    known = folder / "known_hosts"
    public = (upper / "etc/ssh/board_host_key.pub").read_text()
    known.write_text(f"[127.0.0.1]:{port} {' '.join(public.split()[:2])}\n")
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _BOOT, "board", str(base)],
            stdout=log,
            stderr=log,
        )
    board = Board(upper, port, folder / "key", known, process)

    def listening() -> bool:
        assert process.poll() is None, (folder / "sshd.log").read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_for(listening, "sshd", 30)
        board.shell(
            "set -e; useradd -m -s /bin/sh keeper; useradd -m -s /bin/sh guest; useradd -m -s /bin/sh asked; "
            "echo asked:secret | chpasswd; usermod -p '*' keeper; usermod -p '*' guest; "
            "echo 'keeper ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/board; "
            "echo 'asked ALL=(ALL) ALL' >> /etc/sudoers.d/board; chmod 440 /etc/sudoers.d/board"
        )
        yield board
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(base, ignore_errors=True)
