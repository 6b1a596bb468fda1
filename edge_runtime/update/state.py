"""What the launcher keeps on disk: which slot is current, which is on trial, and how the last update ended.

Only the launcher changes this file while it runs. One atomic write is the switch; the link ``current`` follows it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import StorageError, unreadable
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

STATE_FILE = "state.json"
SLOTS = ("a", "b")
KINDS = ("update", "rollback")
RESULTS = ("on-trial", "accepted", "rolled-back", "refused")
_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """A version that has to show that it works.

    Attributes:
        kind: ``update``, or ``rollback`` where the owner asked for the version before.
        back: the slot that is returned to if it does not.
        attempts: starts of it that have begun, and were neither spared nor accepted.
        reason: why the last attempt failed; empty: none has, or the machine was cut off in it.
    """

    kind: str
    back: str
    attempts: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the last switch of versions has ended.

    Attributes:
        kind: ``update`` or ``rollback``.
        result: ``on-trial``: it has not ended; ``accepted``; ``rolled-back``: the version before runs again; or
            ``refused``: nothing was switched.
        from_version: version of Covey before the switch.
        to_version: version of Covey that was to run.
        sha256: SHA-256 of the wheel of ``to_version``, in hex.
        reason: why it was rolled back or refused, in words that may leave the device; else empty.
        at: seconds since 1970.
    """

    kind: str
    result: str
    from_version: str
    to_version: str
    sha256: str
    reason: str = ""
    at: float = 0.0


@dataclass(frozen=True)
class State:
    """What the launcher knows.

    Attributes:
        current: the slot that runs.
        previous: the slot of the version before it, one command away; None: there is none.
        previous_sha256: the wheel of that version, in hex: its slot may hold another one since.
        trial: the trial of ``current``; None: it is accepted.
        deaths: ends of the accepted version in a row, each soon after its start.
        request: the id of the last request that was taken.
        outcome: of the last switch; None: there was none.
    """

    current: str
    previous: str | None = None
    previous_sha256: str = ""
    trial: Trial | None = None
    deaths: int = 0
    request: str = ""
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Request:
    """What the launcher is asked for.

    Attributes:
        id: its name; a request is taken once.
        kind: ``update`` or ``rollback``.
        slot: the slot that is to run.
        sha256: SHA-256 of the wheel that is in that slot, in hex.
    """

    id: str
    kind: str
    slot: str
    sha256: str


class StateDamagedError(StorageError):
    """The launcher's state is damaged: it says nothing."""


def read_state(root: Path) -> State | None:
    """Return the state of a folder of slots; None where there is none yet.

    Raises:
        StateDamagedError: the file is damaged. The launcher sets it aside and looks at the slots themselves.
        StorageError: descriptors or memory are short.
    """
    path = root / STATE_FILE

    def damaged(cause: object) -> StateDamagedError:
        return StateDamagedError(f"{path} is damaged: {cause}", "start the launcher again: it looks at the slots")

    try:
        table = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(error, damaged(error.strerror)) from error
    except (ValueError, RecursionError) as error:
        raise damaged(error) from error
    try:
        return _state_of(table)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged(error) from error


def write_state(root: Path, state: State) -> None:
    """Replace the state; it is on disk when this returns.

    Raises:
        StorageError: the disk is full or not writable; the old state is as it was.
    """
    table = asdict(state)
    write_atomically(root / STATE_FILE, json.dumps({"v": _VERSION, "sha256": _sha256(table), "state": table}).encode())


def _sha256(table: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()


def _state_of(document: Any) -> State:  # noqa: ANN401 parsed JSON
    if document["v"] != _VERSION:
        raise ValueError("it is of another version of the launcher")
    table = document["state"]
    if _sha256(table) != document["sha256"]:
        raise ValueError("it does not match its own hash")
    trial, outcome = table["trial"], table["outcome"]
    table["trial"] = None if trial is None else _typed(Trial, trial)
    table["outcome"] = None if outcome is None else _typed(Outcome, outcome)
    state: State = _typed(State, table)
    slots = [state.current, *([state.previous] if state.previous is not None else [])]
    if state.trial is not None:
        slots.append(state.trial.back)
        if state.trial.back == state.current or state.trial.kind not in KINDS:
            raise ValueError("its trial has nothing to go back to")
    if any(slot not in SLOTS for slot in slots) or state.previous == state.current:
        raise ValueError("it names a slot that cannot be")
    if state.outcome is not None and (state.outcome.kind not in KINDS or state.outcome.result not in RESULTS):
        raise ValueError("its outcome is none of those that are known")
    return state


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "str | None": (str, type(None)),
}


def _typed(kind: type, table: dict[str, Any]) -> Any:  # noqa: ANN401 a record of that kind
    """Return a record whose fields have the types that its class states."""
    for field in fields(kind):
        allowed = _TYPES.get(str(field.type))
        if allowed is not None and not isinstance(table[field.name], allowed):
            raise TypeError(f"{field.name} has a wrong type")
    return kind(**table)
