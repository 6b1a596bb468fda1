"""Writes a board's settings in each of the three ways in which Raspberry Pi images take them at the first boot.

Each way is files for the boot partition. Covey's own services are in the root partition, and are the
same in each way: see payload.py.
"""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING, Any

import yaml

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.flash.first_boot import Format, Found, Settings

Files = dict[str, bytes]
_HELPER = "/usr/lib/raspberrypi-sys-mods/imager_custom"
_USERCONF = "/usr/lib/userconf-pi/userconf"
_LOCKED = "*"
"""Password hash of an account that has none: only a key opens it."""


def first_boot_files(found: Found, settings: Settings, user_data: Mapping[str, Any] | None) -> Files:
    """Return the files for the boot partition of an image.

    Args:
        found: the image.
        settings: for the board.
        user_data: the user's own cloud-init settings, which are merged; None: there are none.

    Raises:
        ConfigError: the image does not use cloud-init, or the user's settings contradict the others.
    """
    if user_data is not None and found.format != "cloud-init":
        raise ConfigError(
            f"the image uses {found.format}, and --user-data is for images with cloud-init", "leave out --user-data"
        )
    writers: dict[Format, Callable[[], Files]] = {
        "firstrun": lambda: _firstrun(found, settings),
        "cloud-init": lambda: _cloud_init(found, settings, user_data or {}),
        "rpi-preseed": lambda: _preseed(settings),
    }
    return writers[found.format]()


def read_user_data(text: bytes, name: str) -> dict[str, Any]:
    """Return a user's cloud-init settings.

    Raises:
        ConfigError: it is no ``#cloud-config``.
    """
    if not text.startswith(b"#cloud-config"):
        raise ConfigError(f"{name} does not begin with #cloud-config", "only cloud-config in YAML can be merged")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{name} is no YAML: {' '.join(str(error).split())[:200]}", "mend that line") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{name} has no settings in it", "write KEY: VALUE lines below #cloud-config")
    return found


def merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two trees of settings: tables are merged, lists are joined, and of two values the upper one counts."""
    result = dict(lower)
    for key, value in upper.items():
        mine = result.get(key)
        if isinstance(mine, dict) and isinstance(value, dict):
            result[key] = merged(mine, value)
        elif isinstance(mine, list) and isinstance(value, list):
            result[key] = [*mine, *(one for one in value if one not in mine)]
        else:
            result[key] = value
    return result


# -- firstrun.sh -------------------------------------------------------------------------------------------------------


def _firstrun(found: Found, settings: Settings) -> Files:
    """A script that systemd runs before anything else, and that removes itself from the kernel's command line."""
    folder = found.boot_folder
    lines = ["#!/bin/sh", "# Written by covey flash; runs once, at the first boot.", "set -u"]
    lines += _both(
        f"{_HELPER} set_hostname {shlex.quote(settings.hostname)}",
        f"old=$(cat /etc/hostname); echo {shlex.quote(settings.hostname)} >/etc/hostname; "
        f'sed -i "s/127.0.1.1.*$old/127.0.1.1\\t{settings.hostname}/g" /etc/hosts',
    )
    if settings.ssh_keys:
        keys = " ".join(shlex.quote(key) for key in settings.ssh_keys)
        user = shlex.quote(settings.user)
        lines += [
            f"if [ -x {_USERCONF} ]; then {_USERCONF} {user} {shlex.quote(_LOCKED)}; fi",
            *_both(
                f"{_HELPER} enable_ssh -k {keys}",
                f"home=$(getent passwd {user} | cut -d: -f6); install -d -o {user} -m 700 $home/.ssh; "
                f"printf '%s\\n' {keys} >$home/.ssh/authorized_keys; chown -R {user} $home/.ssh; systemctl enable ssh",
            ),
        ]
    if settings.wifi is not None:
        wifi = settings.wifi
        hidden = ["-h"] if wifi.hidden else []
        words = ["set_wlan", *hidden, "-p", wifi.ssid, wifi.password or "", wifi.country]
        lines.append(f"{_HELPER} {shlex.join(words)}")
    if settings.time_zone is not None:
        lines += _both(
            f"{_HELPER} set_timezone {shlex.quote(settings.time_zone)}",
            f"ln -sf /usr/share/zoneinfo/{settings.time_zone} /etc/localtime",
        )
    lines += [
        f"rm -f {folder}/firstrun.sh",
        f"sed -i 's| systemd\\.run[^ ]*||g; s| systemd\\.unit=kernel-command-line\\.target||g' {folder}/cmdline.txt",
        "exit 0",
        "",
    ]
    words = _without(found.cmdline, ("systemd.run=", "systemd.run_success_action=", "systemd.unit="))
    words += [
        f"systemd.run={folder}/firstrun.sh",
        "systemd.run_success_action=reboot",
        "systemd.unit=kernel-command-line.target",
    ]
    return {"firstrun.sh": "\n".join(lines).encode(), "cmdline.txt": _cmdline(words)}


def _both(with_helper: str, without: str) -> list[str]:
    return [f"if [ -x {_HELPER} ]; then", f"    {with_helper}", "else", f"    {without}", "fi"]


# -- cloud-init --------------------------------------------------------------------------------------------------------


def _cloud_init(found: Found, settings: Settings, user_data: Mapping[str, Any]) -> Files:
    """user-data, meta-data and network-config, and the data source with this card's own instance id."""
    ours: dict[str, Any] = {"hostname": settings.hostname, "manage_etc_hosts": True}
    if settings.ssh_keys:
        ours["ssh_pwauth"] = False
        ours["users"] = [
            {
                "name": settings.user,
                "groups": "users,adm,dialout,sudo,video,gpio,i2c,spi,netdev",
                "shell": "/bin/bash",
                "sudo": "ALL=(ALL) NOPASSWD:ALL",
                "lock_passwd": True,
                "ssh_authorized_keys": list(settings.ssh_keys),
            }
        ]
        ours["runcmd"] = [["systemctl", "enable", "--now", "ssh"]]
    if settings.time_zone is not None:
        ours["timezone"] = settings.time_zone
    theirs = user_data.get("hostname")
    if theirs not in (None, settings.hostname):
        raise ConfigError(
            f"--user-data says hostname {theirs}, and the card's is {settings.hostname}",
            "leave hostname out of the file, or give --hostname",
        )
    text = yaml.safe_dump(merged(ours, user_data), sort_keys=False, allow_unicode=True)
    files: Files = {
        "user-data": f"#cloud-config\n{text}".encode(),
        "meta-data": f"instance-id: {settings.instance}\nlocal-hostname: {settings.hostname}\n".encode(),
    }
    if settings.wifi is not None:
        files["network-config"] = yaml.safe_dump(_network(settings), sort_keys=False, allow_unicode=True).encode()
    words = [*_without(found.cmdline, ("ds=",)), f"ds=nocloud;i={settings.instance}"]
    return {**files, "cmdline.txt": _cmdline(words)}


def _network(settings: Settings) -> dict[str, Any]:
    """Netplan's form; the cable stays as it was, since this file replaces the image's own."""
    wifi = settings.wifi
    assert wifi is not None  # noqa: S101 the caller has looked
    point: dict[str, Any] = (
        {"auth": {"key-management": "none"}} if wifi.password is None else {"password": wifi.password}
    )
    if wifi.hidden:
        point["hidden"] = True
    return {
        "network": {
            "version": 2,
            "ethernets": {"eth0": {"dhcp4": True, "dhcp6": True, "optional": True}},
            "wifis": {
                "wlan0": {
                    "dhcp4": True,
                    "regulatory-domain": wifi.country,
                    "access-points": {wifi.ssid: point},
                    "optional": True,
                }
            },
        }
    }


# -- rpi-preseed.toml --------------------------------------------------------------------------------------------------


def _preseed(settings: Settings) -> Files:
    """One TOML file; it is applied because it is there, and the kernel's command line stays as it is."""
    tables: dict[str, dict[str, Any]] = {"system": {"hostname": settings.hostname}}
    if settings.ssh_keys:
        tables["user"] = {
            "name": settings.user,
            "password": _LOCKED,
            "password_encrypted": True,
            "passwordless_sudo": True,
        }
        tables["ssh"] = {
            "enabled": True,
            "password_authentication": False,
            "authorized_keys": list(settings.ssh_keys),
        }
    if settings.wifi is not None:
        wifi = settings.wifi
        tables["wlan"] = {"ssid": wifi.ssid, "country": wifi.country, "hidden": wifi.hidden}
        if wifi.password is not None:
            tables["wlan"]["password"] = wifi.password
    if settings.time_zone is not None:
        tables["locale"] = {"timezone": settings.time_zone}
    # Neither rpi-preseed 0.1.0 nor its helper does these at the first boot: the name and SSH would wait for the second.
    commands = [f"hostname {shlex.quote(settings.hostname)}"]
    if settings.ssh_keys:
        commands += [_add_keys(settings), "systemctl start --no-block ssh"]
    tables["runcmd"] = {"early": commands}
    lines = ['config_version = "1.1"']
    for name, fields in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
    return {"rpi-preseed.toml": "\n".join([*lines, ""]).encode()}


def _add_keys(settings: Settings) -> str:
    """Return a command that gives a user the keys that it has not: rpi-preseed 0.1.0 reads them, and loses them."""
    user, keys = shlex.quote(settings.user), " ".join(shlex.quote(key) for key in settings.ssh_keys)
    return (
        f"home=$(getent passwd {user} | cut -d: -f6) && file=$home/.ssh/authorized_keys && "
        f"install -d -o {user} -g {user} -m 700 $home/.ssh && touch $file && "
        f'for key in {keys}; do grep -qxF "$key" $file || echo "$key" >>$file; done; '
        f"chown {user}: $file && chmod 600 $file"
    )


def _toml(value: Any) -> str:  # noqa: ANN401 a string, a truth value or a list of strings
    """Return a value as rpi-preseed reads it: in its strings only backslashes and quotes are escaped."""
    if isinstance(value, list):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if isinstance(value, bool):
        return json.dumps(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _without(cmdline: str, prefixes: tuple[str, ...]) -> list[str]:
    return [word for word in re.split(r"\s+", cmdline.strip()) if word and not word.startswith(prefixes)]


def _cmdline(words: list[str]) -> bytes:
    return (" ".join(words) + "\n").encode()
