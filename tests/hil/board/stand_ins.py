"""Stand-ins for what Raspberry Pi's own packages do at the first boot: Debian has none of them.

They are called as the real ones are called (raspberrypi-sys-mods, userconf-pi, rpi-preseed), and do what is needed of
them and no more. systemd's own generator reads ``systemd.run=``, and cloud-init is Debian's: these two are real.
``COVEY_RPI_PRESEED`` names a checkout of the real rpi-preseed, which is then installed instead of the stand-in.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.hil.board.debian import link
from tests.hil.board.tools import run

RPI_PRESEED = "COVEY_RPI_PRESEED"

_IMAGER_CUSTOM = """\
#!/bin/sh
set -e
user=$(getent passwd 1000 | cut -d: -f1)
home=$(getent passwd 1000 | cut -d: -f6)
what=$1
shift
case $what in
set_hostname)
    sed -i "s/^127.0.1.1.*/127.0.1.1\\t$1/" /etc/hosts
    echo "$1" >/etc/hostname;;
enable_ssh)
    for word in "$@"; do
        case $word in
        -k|--key-only) sed -i 's/^[# ]*PasswordAuthentication .*/PasswordAuthentication no/' /etc/ssh/sshd_config;;
        *)  install -d -o "$user" -g "$user" -m 700 "$home/.ssh"
            echo "$word" >>"$home/.ssh/authorized_keys"
            chmod 600 "$home/.ssh/authorized_keys"
            chown "$user:$user" "$home/.ssh/authorized_keys";;
        esac
    done
    systemctl -q enable ssh;;
set_timezone)
    ln -sf "/usr/share/zoneinfo/$1" /etc/localtime;;
*)  echo "no $what here"; exit 1;;
esac
"""

_USERCONF = """\
#!/bin/sh
# userconf NAME HASH, or userconf OLD NAME HASH
set -e
[ $# -eq 3 ] && shift
old=$(getent passwd 1000 | cut -d: -f1)
if [ "$old" != "$1" ]; then
    usermod -l "$1" "$old"
    usermod -m -d "/home/$1" "$1"
    groupmod -n "$1" "$old"
    sed -i "s/^$old /$1 /" /etc/sudoers.d/010_pi-nopasswd
fi
echo "$1:$2" | chpasswd -e
"""

_PRESEED = """\
#!/usr/bin/python3
import subprocess, tomllib
from pathlib import Path

given = tomllib.loads(Path("/boot/firmware/rpi-preseed.toml").read_text())
assert given["config_version"].startswith("1."), given["config_version"]
helper = "/usr/lib/raspberrypi-sys-mods/imager_custom"
subprocess.run([helper, "set_hostname", given["system"]["hostname"]], check=True)
if user := given.get("user"):
    assert user["password_encrypted"]
    subprocess.run(["/usr/lib/userconf-pi/userconf", "pi", user["name"], user["password"]], check=True)
if given.get("ssh", {}).get("enabled"):
    assert not given["ssh"]["password_authentication"]
    subprocess.run([helper, "enable_ssh", "--key-only"], check=True)  # as 0.1.0, which loses the keys on the way
if zone := given.get("locale", {}).get("timezone"):
    subprocess.run([helper, "set_timezone", zone], check=True)
for command in given.get("runcmd", {}).get("early", []):
    subprocess.run(command, shell=True, check=True)
Path("/var/lib/rpi-preseed").mkdir(exist_ok=True)
Path("/var/lib/rpi-preseed/applied").touch()
"""

_PRESEED_UNIT = """\
[Unit]
After=local-fs.target systemd-tmpfiles-setup.service
Before=systemd-user-sessions.service network-pre.target
ConditionPathExists=/boot/firmware/rpi-preseed.toml
ConditionPathExists=!/var/lib/rpi-preseed/applied

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/rpi-preseed

[Install]
WantedBy=multi-user.target
"""

_HOST_KEYS_UNIT = """\
[Unit]
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
"""

# Raspberry Pi OS has no slash at the end of seedfrom: its cloud-init adds one, and that of Debian 12 (22.4) does not.
_CLOUD_CONFIG = """\
datasource_list: [ NoCloud, None ]
datasource:
  NoCloud:
    seedfrom: file:///boot/firmware/
ssh_deletekeys: false
ssh_genkeytypes: []
"""

_STAGES = ("cloud-init-local", "cloud-init", "cloud-config", "cloud-final")
"""Services of cloud-init, which its package enables when it is installed."""

_CLOUD_INIT = ("usr/bin/cloud-init", "usr/lib/systemd/system-generators/cloud-init-generator")


def prepare(root: Path, kind: str) -> None:
    """Let a root file system take its settings in one of the three ways, as images of Raspberry Pi OS do."""
    _program(root / "usr/lib/raspberrypi-sys-mods/imager_custom", _IMAGER_CUSTOM)
    _program(root / "usr/lib/userconf-pi/userconf", _USERCONF)
    _service(root, "regenerate_ssh_host_keys.service", _HOST_KEYS_UNIT)
    if kind == "cloud-init":
        (root / "etc/cloud/cloud.cfg.d/99_raspberry-pi.cfg").write_text(_CLOUD_CONFIG)
        units = root / "etc/systemd/system"
        for stage in _STAGES:
            link(units / f"cloud-init.target.wants/{stage}.service", f"/lib/systemd/system/{stage}.service")
        mounted = units / "cloud-init-local.service.d/boot.conf"
        mounted.parent.mkdir()
        mounted.write_text("[Unit]\nRequiresMountsFor=/boot/firmware\n")
        return
    for name in _CLOUD_INIT:
        (root / name).unlink()
    if kind == "rpi-preseed":
        _install_preseed(root)


def _install_preseed(root: Path) -> None:
    real = os.environ.get(RPI_PRESEED)
    if real is not None:
        run(["make", "-C", real, "install", f"DESTDIR={root}"])
        for name in ("rpi-preseed.service", "rpi-preseed-runcmd-early.service"):
            _service(root, name, (root / "lib/systemd/system" / name).read_text())
        return
    _program(root / "usr/bin/rpi-preseed", _PRESEED)
    _service(root, "rpi-preseed.service", _PRESEED_UNIT)


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def _service(root: Path, name: str, text: str) -> None:
    """Write a unit, and let it be started at boot."""
    units = root / "etc/systemd/system"
    (units / name).write_text(text)
    link(units / "multi-user.target.wants" / name, f"/etc/systemd/system/{name}")
