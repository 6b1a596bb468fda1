"""What a card gets of Covey in its root partition: the environment, the join token, services, and the set-up script.

It is the same for each way of first-boot settings: a service of systemd sets the board up, so that a board whose image
takes its settings otherwise gets Covey all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_runtime import __version__
from edge_runtime.update.launcher_file import launcher_bytes
from server.flash.card import RootFile
from server.flash.places import BEGIN, BEGIN_SCRIPT, FOLDER, HOME, LAUNCHER, RUNNING, launch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from server.flash.environment import Environment
    from server.flash.first_boot import Settings

EDGE_SETTINGS = f"{FOLDER}/edge-settings.toml"
"""Lines that the first boot puts at the head of edge.toml."""

SETUP, ARCHIVE, NOTE = f"{FOLDER}/setup.sh", f"{FOLDER}/env.tar", f"{FOLDER}/card.json"
TOKEN = f"{FOLDER}/join-token"
UNITS = "/etc/systemd/system"
WANTS = f"{UNITS}/multi-user.target.wants"
SERVICES = ("covey-setup.service", "covey-edge.service")

MAKE_USER = f"""\
id covey >/dev/null 2>&1 || useradd --system --home-dir {HOME} --shell /usr/sbin/nologin --user-group covey
for group in video render gpio i2c; do
    if getent group "$group" >/dev/null; then usermod -a -G "$group" covey; fi
done
install -d -o covey -g covey -m 750 {HOME} {HOME}/data"""
"""Shell commands that make the service's user and its folders, where they are not there; for cards and packages."""

_SETUP = """\
#!/bin/sh
# Written by covey flash. covey-setup.service runs it until it has succeeded; every step can be repeated.
set -eu
home={home} folder={folder}
{make_user}
chown -R covey:covey "$home"
if [ -e {archive} ]; then
    cd /
    runuser -u covey -- sh {begin} {archive}
    rm -f {archive}
    sync
fi
if [ -e "$folder/join-token" ]; then
    install -o covey -g covey -m 600 "$folder/join-token" "$home/join-token"
    cd "$home"
    runuser -u covey -- {running}/bin/covey-edge join --token-file "$home/join-token" \\
        --config "$home/edge.toml" --data data/{rows} --wait {wait}
    rm -f "$home/join-token" "$folder/join-token"
fi
if [ -e "$folder/edge-settings.toml" ] && [ -e "$home/edge.toml" ]; then
    if ! grep -qxF "$(head -n 1 "$folder/edge-settings.toml")" "$home/edge.toml"; then
        cat "$folder/edge-settings.toml" "$home/edge.toml" >"$home/edge.toml.new"
        chown covey:covey "$home/edge.toml.new"
        chmod 600 "$home/edge.toml.new"
        mv "$home/edge.toml.new" "$home/edge.toml"
    fi
    rm -f "$folder/edge-settings.toml"
fi
touch "$folder/set-up"
# An attempt that failed has taken the service's own start with it.
systemctl start --no-block {service} || true
"""

_HOLDS_NOTHING_UP = """\
# As by default, but multi-user.target does not wait for it: cloud-init's last stage, and others, wait for that.
DefaultDependencies=no
Requires=sysinit.target
After=sysinit.target basic.target
Conflicts=shutdown.target
Before=shutdown.target"""

_SETUP_UNIT = f"""\
[Unit]
Description=Covey: set up this board
Documentation=https://github.com/covey-edge/covey
{_HOLDS_NOTHING_UP}
Wants=network-online.target
After=network-online.target
Before=covey-edge.service
ConditionPathExists=!{FOLDER}/set-up

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SETUP}
TimeoutStartSec=infinity
# Network or server may be away for days: it goes on where it was.
Restart=on-failure
RestartSec=30

[Install]
WantedBy=multi-user.target
"""

_EDGE_UNIT = f"""\
[Unit]
Description=Covey: train on this board's rows
Wants=network-online.target
{{after}}
ConditionPathExists={HOME}/edge.toml

[Service]
# It says that it is ready, and that it gets on; what has hung for half an hour is started again.
Type=notify
NotifyAccess=all
WatchdogSec=30min
TimeoutStartSec=30min
User=covey
Group=covey
WorkingDirectory={HOME}
# The launcher starts the version that is current, and goes back to the one before if a new one does not come up.
ExecStart={{launch}}
Restart=always
RestartSec=10
# The launcher passes a stop on, and waits for the step at work; what is trained is in the journal.
KillMode=mixed
TimeoutStopSec=90
# The board is its owner's first: training gives way, and cannot take all of the memory.
Nice=10
IOSchedulingClass=idle
MemoryMax={{memory}}
OOMPolicy=stop
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={HOME}
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
CapabilityBoundingSet=

[Install]
WantedBy=multi-user.target
"""


def edge_unit(python: str, memory_max: str, *, needs_setup: bool) -> str:
    """Return the unit of the launcher, which runs ``covey-edge run``.

    Args:
        python: the version of the system's Python.
        memory_max: what it may use of the machine's memory, as systemd reads it.
        needs_setup: whether a card's first boot sets it up: covey-setup.service.
    """
    after = "After=network-online.target"
    if needs_setup:
        after = f"{_HOLDS_NOTHING_UP}\nRequires={SERVICES[0]}\n{after} {SERVICES[0]}"
    return _EDGE_UNIT.format(memory=memory_max, after=after, launch=launch(python))


class Target(Protocol):
    """A system that gets the files of a card.

    Attributes:
        python: the version of its Python, as ``3.11``.
        format: how it takes settings at the first boot.
    """

    @property
    def python(self) -> str:
        """See above."""

    @property
    def format(self) -> str:
        """See above."""


@dataclass(frozen=True)
class Payload:
    """What a card gets.

    Attributes:
        device: the name of the device in its fleet.
        token: its join token; None: the board is set up without joining a fleet.
        environment: Covey's device side.
        rows: the private rows, a file here; None: they are put onto the board later.
        rows_name: the name of their file on the board.
        memory_max: what the service may use of the board's memory, as systemd reads it: ``80%`` or ``600M``.
        join_wait_s: how long one attempt to join waits for network, clock and approval, in seconds.
        edge_settings: lines for the head of edge.toml, as ``execution_providers = ["cuda", "cpu"]``.
    """

    device: str
    token: str | None
    environment: Environment
    rows: Path | None = None
    rows_name: str = "rows.jsonl"
    memory_max: str = "80%"
    join_wait_s: int = 600
    edge_settings: tuple[str, ...] = ()


def root_files(found: Target, settings: Settings, payload: Payload) -> list[RootFile]:
    """Return the files for the root partition of a card."""
    words = {"hostname": settings.hostname, "instance": settings.instance, "first_boot": found.format}
    return board_files(found.python, payload, words)


def board_files(python: str, payload: Payload, words: Mapping[str, str]) -> list[RootFile]:
    """Return the files for a board.

    Args:
        python: the version of its Python.
        payload: what it gets.
        words: what else its note says.
    """
    note = {
        "device": payload.device,
        **words,
        "covey_version": __version__,
        "python": python,
        "packages": list(payload.environment.packages),
    }
    setup = _SETUP.format(
        make_user=MAKE_USER,
        home=HOME,
        folder=FOLDER,
        archive=ARCHIVE,
        begin=BEGIN,
        running=RUNNING,
        rows=payload.rows_name,
        wait=payload.join_wait_s,
        service=SERVICES[1],
    )
    files = [
        RootFile(FOLDER, 0o755),
        RootFile(HOME, 0o750),
        RootFile(f"{HOME}/data", 0o750),
        RootFile(ARCHIVE, 0o644, payload.environment.archive),
        RootFile(LAUNCHER, 0o644, launcher_bytes()),
        RootFile(BEGIN, 0o755, BEGIN_SCRIPT.encode()),
        RootFile(SETUP, 0o755, setup.encode()),
        RootFile(NOTE, 0o644, (json.dumps(note, indent=2) + "\n").encode()),
        RootFile(f"{UNITS}/{SERVICES[0]}", 0o644, _SETUP_UNIT.encode()),
        RootFile(f"{UNITS}/{SERVICES[1]}", 0o644, edge_unit(python, payload.memory_max, needs_setup=True).encode()),
        *(RootFile(f"{WANTS}/{name}", target=f"{UNITS}/{name}") for name in SERVICES),
    ]
    if payload.token is not None:
        files.append(RootFile(TOKEN, 0o600, f"{payload.token}\n".encode()))
    if payload.edge_settings:
        lines = "".join(f"{line}\n" for line in payload.edge_settings)
        files.append(RootFile(EDGE_SETTINGS, 0o644, lines.encode()))
    if payload.rows is not None:
        files.append(RootFile(f"{HOME}/data/{payload.rows_name}", 0o640, payload.rows))
    return files


def needed_bytes(files: list[RootFile], unpacked_bytes: int) -> int:
    """Return the bytes that a root partition needs for files, and for the environment once it is unpacked."""
    sizes = [
        len(file.data) if isinstance(file.data, bytes) else file.data.stat().st_size
        for file in files
        if file.data is not None
    ]
    return sum(sizes) + unpacked_bytes
