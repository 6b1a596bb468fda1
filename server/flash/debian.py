"""Makes a Debian package of the device side: environment, service, user; for one version of Python and one machine."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.errors import storage_error
from edge_runtime.update.launcher_file import launcher_bytes
from server.flash.environment import make_environment, shortcomings, unpack_environment
from server.flash.payload import MAKE_USER, edge_unit
from server.flash.places import BEGIN, BEGIN_SCRIPT, FIRST, FOLDER, HOME, LAUNCHER, RUNNING, SLOTS
from server.flash.tools import require_tools, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.flash.environment import Machine, Sources

NAME = "covey-edge"
_ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}

PACKAGE = f"{FOLDER}/package"
"""The environment as the package has brought it; the slots begin with a copy, which belongs to the service's user."""

_COMMAND = f"""\
#!/bin/sh
# Runs the version of Covey that this device has at present. It belongs to user covey, so root runs the package's.
if [ "$(id -u)" = 0 ]; then exec {PACKAGE}/bin/python3 -I -m edge_runtime.cli "$@"; fi
exec {RUNNING}/bin/python3 -I -m edge_runtime.cli "$@"
"""

_CONTROL = """\
Package: {name}
Version: {version}+py{python}
Architecture: {architecture}
Maintainer: Covey <covey@localhost>
Section: science
Priority: optional
Installed-Size: {kilobytes}
Depends: python3 (>= {python}), python3 (<< {next_python}~), passwd, libc6 (>= 2.28)
Recommends: ca-certificates
Description: fine-tune language models on this device's own rows
 Covey's device side: it joins a fleet over MQTT, trains with forward passes
 alone or with layer dropout, and sends scalars instead of data.
 Its Python packages are in {folder}, apart from the system's.
"""

_POSTINST = f"""\
#!/bin/sh
set -e
if [ "$1" = configure ]; then
{MAKE_USER}
    # This version is the only one then, also where a rollout has brought another one.
    if [ -d /run/systemd/system ]; then systemctl stop {NAME}.service || true; fi
    cd /
    runuser -u covey -- sh {BEGIN} {PACKAGE}
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        systemctl enable -q {NAME}.service
        # It starts where the device has joined already: an upgrade.
        systemctl restart {NAME}.service || true
    else
        mkdir -p /etc/systemd/system/multi-user.target.wants
        ln -sf /usr/lib/systemd/system/{NAME}.service /etc/systemd/system/multi-user.target.wants/
    fi
    if [ ! -e {HOME}/edge.toml ]; then
        echo "covey-edge: next: sudo covey-edge setup TOKEN   (the token: covey fleet token NAME, on the server)"
    fi
fi
"""

_PRERM = f"""\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl stop {NAME}.service || true
fi
if [ "$1" = remove ]; then
    rm -f /etc/systemd/system/multi-user.target.wants/{NAME}.service
fi
# Python has written its caches beside the files of the package.
find {PACKAGE} -name __pycache__ -type d -prune -exec rm -rf {{}} + 2>/dev/null || true
"""

_POSTRM = f"""\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = remove ]; then
    rm -rf {SLOTS}
fi
if [ "$1" = purge ]; then
    # Identity, adapters and rows of this device go only here.
    rm -rf {HOME}
    if id covey >/dev/null 2>&1; then userdel covey || true; fi
fi
"""


def make_package(
    python: str, machine: Machine, sources: Sources, folder: Path, warn: Callable[[str], None] | None = None
) -> Path:
    """Write a Debian package into a folder; return its path.

    Args:
        python: the version of Python that the system has: 3.11 in Debian 12, 3.13 in Debian 13.
        machine: the machine it is for.
        sources: where Python packages come from.
        folder: where it is written.
        warn: takes what its operator should know: no compiled kernel, libraries that some kernels cannot load.

    Raises:
        ConfigError: dpkg-deb is not installed.
        NetworkError, StorageError: see make_environment.
    """
    require_tools(["dpkg-deb"])
    architecture = _ARCHITECTURES[machine]
    path = folder / f"{NAME}_{__version__}+py{python}_{architecture}.deb"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".covey-deb-") as work:
        root = Path(work) / "root"
        made = make_environment(python, sources, Path(work) / "env.tar", machine)
        if warn is not None:
            for sentence in shortcomings(made, machine):
                warn(sentence)
        try:
            _stage(root, made.archive, python)
            major, minor = python.split(".")
            control = _CONTROL.format(
                name=NAME,
                version=__version__,
                python=python,
                next_python=f"{major}.{int(minor) + 1}",
                architecture=architecture,
                kilobytes=made.unpacked_bytes >> 10,
                folder=FOLDER,
            )
            _write_scripts(root / "DEBIAN", control)
        except OSError as error:
            raise storage_error(error, root) from error
        partial = Path(work) / path.name
        run_tool(["dpkg-deb", "--root-owner-group", "-Zxz", "-z1", "--build", str(root), str(partial)])
        partial.replace(path)
    return path


def _stage(root: Path, archive: Path, python: str) -> None:
    """Lay out the package's files."""
    opt = root / FOLDER.lstrip("/")
    opt.mkdir(parents=True)
    unpack_environment(archive, opt)
    (opt / FIRST).rename(root / PACKAGE.lstrip("/"))
    (root / LAUNCHER.lstrip("/")).write_bytes(launcher_bytes())
    (root / BEGIN.lstrip("/")).write_text(BEGIN_SCRIPT)
    unit = root / "usr/lib/systemd/system" / f"{NAME}.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(edge_unit(python, "80%", needs_setup=False))
    command = root / "usr/bin" / NAME
    command.parent.mkdir(parents=True)
    command.write_text(_COMMAND)
    command.chmod(0o755)
    notice = root / "usr/share/doc" / NAME / "copyright"
    notice.parent.mkdir(parents=True)
    notice.write_text("Covey is under the Apache License 2.0; its Python packages have theirs beside them.\n")


def _write_scripts(folder: Path, control: str) -> None:
    folder.mkdir(mode=0o755)
    (folder / "control").write_text(control)
    for name, text in (("postinst", _POSTINST), ("prerm", _PRERM), ("postrm", _POSTRM)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
