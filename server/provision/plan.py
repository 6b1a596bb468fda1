"""What is to be done on a board, as a pure function of what is there and what is wanted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import tomllib

from edge_runtime.errors import ConfigError, EnrolmentError, StorageError
from server.flash.first_boot import PYTHONS
from server.flash.payload import SERVICES
from server.flash.places import FOLDER, HOME, SLOTS
from server.provision.authority import authority_of
from server.provision.facts import running_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.flash.environment import Machine
    from server.provision.facts import Facts

Action = Literal["environment", "files", "rows", "join", "start", "stop", "remove", "purge"]

LEAST_FREE_BYTES = 500_000_000
"""Free space that a board needs for Covey's environment, as an archive and unpacked; exact once it is made."""

_ARCHITECTURES: Mapping[str, tuple[Machine, str]] = {"aarch64": ("aarch64", "arm64"), "x86_64": ("x86_64", "amd64")}
_LEAST_GLIBC = (2, 28)
_LARGEST_CLOCK_ERROR_S = 300


@dataclass(frozen=True)
class Step:
    """A step of a plan.

    Attributes:
        action: what is done.
        text: the same as a sentence.
    """

    action: Action
    text: str


@dataclass(frozen=True)
class Target:
    """For what packages are chosen: a board's machine and Python."""

    machine: Machine
    python: str


@dataclass(frozen=True)
class Wanted:
    """What a board is to be.

    Attributes:
        device: its name in the fleet.
        environment_id: tells environments apart; None: it is not known yet.
        files: SHA-256 of the files that Covey has there, by path.
        rows_path: where its rows are to be; None: none are given.
        rows_sha256: the hash of the given rows.
        is_known: whether the server knows a device of this name.
        may_replace: whether the board may take over a name that another machine has, or had.
        authority: the DER certificate's SHA-256 of the server's authority; None: it is not known here.
    """

    device: str
    environment_id: str
    files: Mapping[str, str]
    rows_path: str | None = None
    rows_sha256: str | None = None
    is_known: bool = False
    may_replace: bool = False
    authority: bytes | None = None


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        steps: in order; none: the board is as it is to be.
        notes: what else the operator should know.
        has_rows: whether the board has rows when all is done; without any it announces nothing.
    """

    steps: tuple[Step, ...]
    notes: tuple[str, ...] = field(default=())
    has_rows: bool = True

    def does(self, action: Action) -> bool:
        """Whether a step of it is an action."""
        return any(step.action == action for step in self.steps)


def check_board(facts: Facts) -> Target:
    """Return what packages a board needs.

    Raises:
        ConfigError: Covey's device side does not run there, or nobody may install it; the error says why.
        StorageError: its disk is too small.
    """
    words = facts.words
    system = words.get("system", "an unknown system")
    if not {"debian", "ubuntu"} & set(words.get("ids", "").split()):
        raise ConfigError(f"the board runs {system}, neither Debian nor Ubuntu", "pip install covey there, by hand")
    machine, architecture = words.get("machine", ""), words.get("architecture", "")
    if machine not in _ARCHITECTURES:
        raise ConfigError(
            f"the board is a {machine or 'machine of no name'}, and there are no packages for it",
            "it must be a 64-bit Arm (aarch64) or x86_64",
        )
    found, debian_name = _ARCHITECTURES[machine]
    if architecture not in ("", debian_name):
        raise ConfigError(
            f"the board has a 64-bit kernel with a system of {architecture}", f"install its {debian_name} system"
        )
    glibc = re.fullmatch(r"glibc (\d+)\.(\d+).*", words.get("glibc", ""))
    if glibc is None or (int(glibc[1]), int(glibc[2])) < _LEAST_GLIBC:
        raise ConfigError(
            f"the board's C library is {words.get('glibc') or 'not glibc'}",
            f"packages need glibc {_LEAST_GLIBC[0]}.{_LEAST_GLIBC[1]} or later: Debian 11, Ubuntu 20.04",
        )
    if not facts.has("systemd"):
        raise ConfigError("the board does not run systemd", "start covey-edge there by what does: docs/operating.md")
    if not facts.has("sudo"):
        raise ConfigError("the user is not root on the board, and sudo is not there", "log in as root: root@HOST")
    python = _python(facts)
    if words.get("package", "").startswith("install ok"):
        raise ConfigError(
            "the board has the Debian package covey-edge", "sudo covey-edge setup TOKEN there; or apt remove covey-edge"
        )
    if not facts.has("note"):
        check_room(facts, LEAST_FREE_BYTES // 2, LEAST_FREE_BYTES // 2)
    return Target(found, python)


def plan_install(facts: Facts, wanted: Wanted) -> Plan:
    """Return what makes a board the device that is wanted.

    Raises:
        ConfigError: the board is another device's, or keeps its rows in another file.
        EnrolmentError: the name is another machine's, or the board is of another fleet.
    """
    edge = check_owner(facts, wanted)
    is_member = edge is not None and facts.has("certificate") and not wanted.may_replace
    if wanted.is_known and not is_member and not wanted.may_replace:
        raise EnrolmentError(
            f"the fleet has a device {wanted.device} already, and this board is not it",
            "give another name; or --replace, with which this board takes the name over and the older keys are revoked",
        )
    steps: list[Step] = []
    is_same = facts.note.get("environment") == wanted.environment_id and running_version(facts) is not None
    if not is_same:
        steps.append(Step("environment", f"put Covey's device side and its packages into {SLOTS}"))
    if not is_same or not facts.has("user") or dict(facts.files) != dict(wanted.files):
        steps.append(Step("files", f"make user covey, {HOME}, and the services {' and '.join(SERVICES)}"))
    if wanted.rows_path is not None and facts.rows.get(wanted.rows_path) != wanted.rows_sha256:
        steps.append(Step("rows", f"put the private rows into {wanted.rows_path}"))
    if not is_member:
        steps.append(Step("join", f"join the fleet as {wanted.device}, with a one-time token; the key is made there"))
    if steps or not facts.has("set_up") or not facts.has("enabled") or not facts.has("active"):
        steps.append(Step("start", f"enable and start {' and '.join(SERVICES)}"))
    has_rows = bool(facts.rows) or wanted.rows_path is not None
    return Plan(tuple(steps), tuple(_notes(facts, has_rows=has_rows)), has_rows)


def plan_uninstall(facts: Facts, device: str, *, is_purge: bool) -> Plan:
    """Return what takes Covey off a board.

    Raises:
        ConfigError: the board is another device's.
    """
    edge = _edge(facts)
    name = facts.note.get("device") if edge is None else edge.get("name")
    if name is not None and name != device:
        raise ConfigError(f"the board is device {name}, not {device}", "check host and name; nothing was removed")
    steps: list[Step] = []
    if facts.has("enabled") or facts.has("active"):
        steps.append(Step("stop", f"stop and disable {' and '.join(SERVICES)}"))
    if facts.has("folder") or facts.files:
        steps.append(Step("remove", f"remove {FOLDER}, {SLOTS} and the services"))
    if is_purge and (facts.has("home") or facts.has("user")):
        steps.append(Step("purge", f"remove {HOME} with identity, adapters and rows, and user covey"))
    notes = () if is_purge or not facts.has("home") else (f"{HOME} is kept: identity, adapters and rows (--purge)",)
    return Plan(tuple(steps), notes)


def check_room(facts: Facts, sent_bytes: int, unpacked_bytes: int) -> None:
    """Check that a board has room for what it gets.

    Args:
        facts: what it has.
        sent_bytes: what is put below /opt.
        unpacked_bytes: what that takes once it is unpacked, below /var.

    Raises:
        StorageError: it has not.
    """
    words = facts.words
    if words.get("opt_disk") == words.get("var_disk"):
        _check_free(facts.number("opt_free_kib"), sent_bytes + unpacked_bytes, f"{FOLDER} and {SLOTS}")
        return
    _check_free(facts.number("opt_free_kib"), sent_bytes, FOLDER)
    _check_free(facts.number("var_free_kib"), unpacked_bytes, SLOTS)


def check_owner(facts: Facts, wanted: Wanted) -> Mapping[str, Any] | None:
    """Return the configuration on a board, which must be the wanted device's; None: there is none."""
    edge = _edge(facts)
    if edge is not None and edge.get("name") != wanted.device:
        raise ConfigError(
            f"the board is device {edge.get('name')} already, not {wanted.device}",
            f"covey device rename {edge.get('name')} {wanted.device}; or, for a device of its own: --uninstall --purge",
        )
    if edge is not None and wanted.authority is not None:
        there = authority_of(facts)
        if there is not None and there != wanted.authority:
            raise EnrolmentError(
                "the board is a device of another fleet: its authority is not this server's",
                "to take it into this fleet: --uninstall --purge, and again; its rows are removed with it",
            )
    others = sorted(path for path in facts.rows if path != wanted.rows_path)
    if edge is not None and wanted.rows_path is not None and others:
        raise ConfigError(
            f"the board has its rows in {others[0]}, and --data would put others into {wanted.rows_path}",
            "give rows in the same format, or change [data] path there first",
        )
    return edge


def _edge(facts: Facts) -> Mapping[str, Any] | None:
    if facts.edge is None:
        return None
    try:
        return tomllib.loads(facts.edge)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{HOME}/edge.toml on the board is not TOML ({error})", "mend or remove it there") from error


def _python(facts: Facts) -> str:
    default = facts.words.get("default_python", "")
    usable = [python for python in facts.pythons if python in PYTHONS]
    if default in usable:
        return default
    if usable:
        return max(usable, key=PYTHONS.index)
    if any(python in PYTHONS for python in facts.bare_pythons):
        raise ConfigError("the board's Python has no standard library", "there: sudo apt install python3")
    there = ", ".join([*facts.pythons, *facts.bare_pythons]) or "none"
    raise ConfigError(
        f"the board's Python in /usr/bin is {there}; Covey runs on {', '.join(PYTHONS)}",
        "there: sudo apt install python3; or a system that has one of them",
    )


def _check_free(free_kib: int, needed_bytes: int, place: str) -> None:
    free = free_kib << 10
    if free < needed_bytes:
        raise StorageError(
            f"the board has {free / 1e6:.0f} MB free for {place}, and {needed_bytes / 1e6:.0f} MB are needed",
            "free some space there (sudo apt clean), or use a larger disk",
        )


def _notes(facts: Facts, *, has_rows: bool) -> list[str]:
    notes = []
    if abs(facts.clock_off_s) > _LARGEST_CLOCK_ERROR_S:
        notes.append(f"the board's clock is {facts.clock_off_s:.0f} s off: it joins as soon as its clock is right")
    if not has_rows:
        notes.append(f"it has no rows: put them into {HOME}/data/rows.jsonl; it announces itself then, not before")
    return notes
