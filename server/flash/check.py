"""Reads a card image back, and says what it will do at its first boot."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import yaml

from edge_runtime.errors import ConfigError, CoveyError
from edge_runtime.trust.token import decode_token
from server.flash import payload
from server.flash.card import Card
from server.flash.environment import archive_problems
from server.flash.first_boot import look_into
from server.flash.places import BEGIN, LAUNCHER, SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from server.flash.first_boot import Found

_PRIVATE = 0o600
_KINDS = 0o777


@dataclass
class CardReport:
    """What a card is, and what it will do.

    Attributes:
        system: the image's operating system.
        python: its Python.
        first_boot: how it takes its settings.
        device: the device that it becomes; None: nothing of Covey is on it.
        hostname: its name on the network; None: not known.
        covey_version: of the device side on it.
        server_url: where it joins; None: it has no token.
        token_expires_at_s: until when its token can be used, in seconds since 1970.
        steps: what happens at the first boot, in order.
        problems: what keeps it from that; none: it is in order.
    """

    system: str
    python: str
    first_boot: str
    device: str | None = None
    hostname: str | None = None
    covey_version: str | None = None
    server_url: str | None = None
    token_expires_at_s: int | None = None
    steps: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_card(path: Path) -> CardReport:
    """Read a card image back.

    Raises:
        ConfigError: it is no card image.
        StorageError: it cannot be read.
    """
    card = Card(path)
    found = look_into(card)
    report = CardReport(found.system, found.python, found.format)
    _check_file_system(card, report)
    _check_note(card, report)
    _check_first_boot(card, found, report)
    if report.device is not None:
        _check_environment(card, found, report)
        _check_services(card, report)
        _check_token(card, report)
    return report


def _check_file_system(card: Card, report: CardReport) -> None:
    try:
        card.check_root()
    except CoveyError as error:
        report.problems.append(f"its root partition is damaged: {error.what}")


def _check_note(card: Card, report: CardReport) -> None:
    text = card.read_root(payload.NOTE)
    if text is None:
        report.problems.append(f"nothing of Covey is on it: {payload.NOTE} is missing")
        return
    note = json.loads(text)
    report.device, report.hostname, report.covey_version = note["device"], note["hostname"], note["covey_version"]
    if note["first_boot"] != report.first_boot:
        report.problems.append(f"it was made for {note['first_boot']}, and the image uses {report.first_boot}")


def _check_first_boot(card: Card, found: Found, report: CardReport) -> None:
    """Check that the settings are where the image looks for them, and can be read."""
    wanted = {"firstrun": "firstrun.sh", "cloud-init": "user-data", "rpi-preseed": "rpi-preseed.toml"}[found.format]
    if wanted not in found.boot_files:
        report.problems.append(f"{wanted} is missing in the boot partition")
        return
    text = card.read_boot(wanted).decode(errors="replace")
    if found.format == "firstrun":
        if f"systemd.run={found.boot_folder}/firstrun.sh" not in found.cmdline.split():
            report.problems.append(f"cmdline.txt does not run {found.boot_folder}/firstrun.sh")
        report.steps.append(
            f"systemd runs {found.boot_folder}/firstrun.sh, which sets hostname and access, and reboots"
        )
    elif found.format == "cloud-init":
        ids = [word.partition(";i=")[2] for word in found.cmdline.split() if word.startswith("ds=nocloud;i=")]
        meta = yaml.safe_load(card.read_boot("meta-data")) if "meta-data" in found.boot_files else {}
        if len(ids) != 1 or ids[0] != (meta or {}).get("instance-id"):
            report.problems.append("the instance id in cmdline.txt is not the one in meta-data")
        if not isinstance(yaml.safe_load(text), dict) or not text.startswith("#cloud-config"):
            report.problems.append("user-data is no #cloud-config")
        report.steps.append("cloud-init applies user-data: hostname and access")
    else:
        report.steps.append("rpi-preseed applies rpi-preseed.toml: hostname and access")


def _check_environment(card: Card, found: Found, report: CardReport) -> None:
    data = card.read_root(payload.ARCHIVE)
    if data is None:
        report.problems.append(f"{payload.ARCHIVE} is missing")
        return
    problems = archive_problems(data, found.python)
    report.problems += [f"{payload.ARCHIVE}: {problem}" for problem in problems]
    report.steps.append(unpacking_words(report))


def unpacking_words(report: CardReport) -> str:
    """Return what the set-up of a board does with its environment."""
    return f"covey-setup.service makes user covey, and unpacks Covey {report.covey_version} into the slots in {SLOTS}"


def training_words() -> str:
    """Return what the service of a board does."""
    return "covey-edge.service trains as user covey, as soon as there are rows; a rollout can replace its Covey"


def _check_services(card: Card, report: CardReport) -> None:
    mode = card.mode_of(payload.SETUP)
    if mode is None or mode[0] & 0o111 != 0o111:
        report.problems.append(f"{payload.SETUP} cannot be run")
    if not zipfile.is_zipfile(io.BytesIO(card.read_root(LAUNCHER) or b"")):
        report.problems.append(f"{LAUNCHER} is missing or damaged")
    if not card.has(BEGIN):
        report.problems.append(f"{BEGIN} is missing")
    for name in payload.SERVICES:
        if not card.has(f"{payload.UNITS}/{name}") or not card.has(f"{payload.WANTS}/{name}"):
            report.problems.append(f"{name} is not started at boot")


def _check_token(card: Card, report: CardReport) -> None:
    text = card.read_root(payload.TOKEN)
    if text is None:
        report.steps.append("it joins no fleet: there is no token on it")
        return
    mode = card.mode_of(payload.TOKEN)
    if mode is None or mode[0] & _KINDS != _PRIVATE:
        report.problems.append(f"{payload.TOKEN} can be read by others")
    try:
        token = decode_token(text.decode(errors="replace").strip())
    except ConfigError as error:
        report.problems.append(f"its join token is damaged: {error.what}")
        return
    if token.device != report.device:
        report.problems.append(f"its join token is for {token.device}")
    report.server_url, report.token_expires_at_s = token.server_url, token.expires_at_s
    report.steps.append(f"it joins the fleet at {token.server_url} as {token.device}; its key is made on the board")
    report.steps.append(training_words())
