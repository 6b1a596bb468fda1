"""The rules of a switch, as pure functions of the launcher's state: who runs next, and when it goes back.

A new version is tried MOST_ATTEMPTS times. An attempt counts from before its start, so that a power cut in it counts
too; it is given back where it ended for reasons that no version can help: the owner stopped it, or nobody could have
reached the broker. An accepted version that dies MOST_DEATHS times in a row, each time soon after its start, goes back
as well, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from edge_runtime.update.state import SLOTS, Outcome, Request, State, Trial

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.update.slots import Installed

    Slots = Mapping[str, Installed]
    """What is in the slots that can run, by slot."""

MOST_ATTEMPTS = 2
MOST_DEATHS = 5
NETWORK_EXIT_CODE = 7
_EXCUSED = (0, 2, 3, 4, NETWORK_EXIT_CODE, 8, 12)
"""Exit codes of an accepted version that speak of its surroundings (errors.py): configuration, data, network, disk."""
_CUT_OFF = "it was cut off each time it was tried, as by a power cut, before it was seen to work"


@dataclass(frozen=True)
class Limits:
    """How long the launcher waits for a version on trial.

    Attributes:
        healthy_s: seconds from its start until it serves.
        trial_s: seconds that it then has to stay up.
        soon_s: a death within so many seconds of the start counts towards MOST_DEATHS.
    """

    healthy_s: float = 300.0
    trial_s: float = 300.0
    soon_s: float = 600.0


@dataclass(frozen=True)
class Signs:
    """What the launcher has seen of a version on trial; seconds of a steady clock.

    Attributes:
        stage: the last stage that it has told (heartbeat.py); empty: none.
        started_at: when it was started.
        served_at: when it began to serve; None: it has not.
        beat_at: its last sign of life; None: none since it serves.
    """

    stage: str
    started_at: float
    served_at: float | None = None
    beat_at: float | None = None


def previous_version(state: State, slots: Slots) -> Installed | None:
    """Return the version before the current one; None: there is none, or its slot holds another one since."""
    here = None if state.previous is None else slots.get(state.previous)
    return here if here is not None and here.sha256 == state.previous_sha256 else None


Verdict = Literal["wait", "accept", "unreachable", "late", "silent"]


def judge(signs: Signs, limits: Limits, now: float) -> Verdict:
    """Return what is to be done with a version on trial that still runs.

    ``unreachable``: it waits for its broker, which may be down for every version. ``late``: it does not come to that
    point. ``silent``: it served, and its main loop gives no sign of life since the trial should have ended.
    """
    if signs.served_at is None:
        if now - signs.started_at <= limits.healthy_s:
            return "wait"
        return "unreachable" if signs.stage == "connecting" else "late"
    ends_at = signs.served_at + limits.trial_s
    if now < ends_at:
        return "wait"
    if signs.beat_at is not None and signs.beat_at >= ends_at:
        return "accept"
    return "silent" if now - ends_at > limits.healthy_s else "wait"


def first_state(slots: Slots, linked: str | None) -> State | None:
    """Return the state of a folder whose state is lost: what the link names, or any version; None: there is none."""
    slot = linked if linked in slots else next((slot for slot in SLOTS if slot in slots), None)
    if slot is None:
        return None
    before = next((slots[each] for each in slots if each != slot), None)
    return State(slot) if before is None else State(slot, before.slot, before.sha256)


def repaired(state: State, slots: Slots, now: float) -> State:
    """Return a state whose current slot can run, where any can; a version whose files are gone is left."""
    if state.current in slots:
        return state
    if state.trial is not None and state.trial.back in slots:
        return _back(state, slots, "its files are gone, or its interpreter is", now)
    rest = next((slot for slot in SLOTS if slot in slots), None)
    if rest is None:
        return state
    left, why = slots[rest], "the version that ran is gone"
    outcome = Outcome("rollback", "rolled-back", "unknown", left.version, left.sha256, why, now)
    return State(rest, request=state.request, outcome=outcome)


def take_request(state: State, request: Request, slots: Slots, now: float) -> State:
    """Return the state after a request: the asked version is on trial, or the outcome says why not. Taken once."""
    if request.id == state.request:
        return state
    state = replace(state, request=request.id)
    if state.trial is not None:
        if request.kind == "rollback":
            return _back(state, slots, "the owner asked for the version before", now)
        return state  # who asks for an update sees that another is on trial
    here = slots.get(request.slot)
    if here is None or here.sha256 != request.sha256 or request.slot == state.current:
        return replace(state, outcome=_outcome(state, request, slots, "that version is not installed any more", now))
    trial = Trial(request.kind, state.current)
    started = State(request.slot, trial=trial, request=state.request)
    outcome = Outcome(request.kind, "on-trial", _version(slots, state.current), here.version, here.sha256, "", now)
    return replace(started, outcome=outcome)


def _outcome(state: State, request: Request, slots: Slots, reason: str, now: float) -> Outcome:
    before = _version(slots, state.current)
    return Outcome(request.kind, "refused", before, _version(slots, request.slot), request.sha256, reason, now)


def begin_attempt(state: State, slots: Slots, now: float) -> State:
    """Return the state to write before the current version is started: the attempt counts, or there was the last."""
    if state.trial is None:
        return state
    if state.trial.attempts >= MOST_ATTEMPTS:
        return _back(state, slots, state.trial.reason or _CUT_OFF, now)
    return replace(state, trial=replace(state.trial, attempts=state.trial.attempts + 1))


def spare_attempt(state: State) -> State:
    """Return the state after an attempt that says nothing of the version: stopped by the owner, or no network."""
    if state.trial is None:
        return state
    return replace(state, trial=replace(state.trial, attempts=max(0, state.trial.attempts - 1)))


def fail_attempt(state: State, slots: Slots, reason: str, now: float) -> State:
    """Return the state after a failed attempt: one more, or the version before."""
    if state.trial is None:
        return state
    if state.trial.attempts >= MOST_ATTEMPTS:
        return _back(state, slots, reason, now)
    return replace(state, trial=replace(state.trial, reason=reason))


def accept(state: State, slots: Slots, now: float) -> State:
    """Return the state after a trial that was passed: the version before stays, one command away."""
    if state.trial is None:
        return state
    outcome = state.outcome and replace(state.outcome, result="accepted", at=now)
    before = slots.get(state.trial.back)
    ended = State(state.current, request=state.request, outcome=outcome)
    return ended if before is None else replace(ended, previous=before.slot, previous_sha256=before.sha256)


def after_end(state: State, slots: Slots, code: int, lived_s: float, limits: Limits, now: float) -> State:
    """Return the state after an accepted version has ended by itself.

    Args:
        state: the state.
        slots: what can run.
        code: its exit code; negative: the signal that ended it.
        lived_s: seconds that it has run.
        limits: which deaths count.
        now: seconds since 1970.
    """
    if state.trial is not None:
        return state
    if code in _EXCUSED or lived_s > limits.soon_s:
        return replace(state, deaths=0)
    counted = replace(state, deaths=state.deaths + 1)
    before, after = slots.get(state.current), previous_version(state, slots)
    if counted.deaths < MOST_DEATHS or after is None:
        return counted
    reason = f"it ended {counted.deaths} times in a row soon after its start, the last time with {exit_words(code)}"
    outcome = Outcome(
        "update",
        "rolled-back",
        after.version,
        "unknown" if before is None else before.version,
        "" if before is None else before.sha256,
        reason,
        now,
    )
    return State(after.slot, request=state.request, outcome=outcome)


def survived(state: State) -> State:
    """Return the state after an accepted version has run for long: the deaths before are no row any more."""
    return replace(state, deaths=0)


def exit_words(code: int) -> str:
    """Return how a process has ended, in words."""
    return f"exit code {code}" if code >= 0 else f"signal {-code}"


def _version(slots: Slots, slot: str) -> str:
    return slots[slot].version if slot in slots else "unknown"


def _back(state: State, slots: Slots, reason: str, now: float) -> State:
    """Return to the version before; where it is gone, the one on trial is all there is, and stays."""
    assert state.trial is not None  # noqa: S101 its callers have looked
    outcome = state.outcome or Outcome(state.trial.kind, "on-trial", "unknown", "unknown", "")
    if state.trial.back not in slots:
        kept = replace(outcome, result="accepted", reason=f"{reason}; but the version before it is gone", at=now)
        return replace(state, trial=None, outcome=kept)
    ended = replace(outcome, result="rolled-back", reason=reason, at=now)
    return State(state.trial.back, request=state.request, outcome=ended)
