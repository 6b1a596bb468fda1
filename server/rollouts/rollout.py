"""The state machine of one rollout: pure functions from a rollout and what has happened to the rollout after it.

A rollout holds all of its state, so that a server that was killed goes on with what the ledger has. A device that is
away is waited for without counting as an error, and gets its turn when it comes; one that was asked and has not
answered holds its group up, since a device that vanishes over an update is what a rollout is there to find.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.protocol.side_messages import ReleaseKind
from server.errors import RolloutError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

State = Literal["running", "soaking", "waiting", "paused", "rolling-back", "halted", "finished", "aborted"]
DeviceState = Literal["pending", "offered", "fetching", "switched", "failed", "rolled-back"]
Step = Literal["switch", "back"]
Outcome = Literal["fetching", "switched", "failed", "rolled-back"]
ENDED = ("halted", "finished", "aborted")
_BACK = ("rolling-back", "halted", "aborted")
_ASKED = ("offered", "fetching")
_LONGEST_REASON = 500


class DeviceEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What became of one device, and why."""

    state: DeviceState = "pending"
    reason: str = ""


class Rollout(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rollout.

    Attributes:
        kind: bundle, adapter or wheel.
        sha256: hash of what is rolled out.
        size_bytes: of its file; of a bundle, of its manifest.
        path: the file, or the bundle's folder, on the server.
        bundle_sha256: the bundle that an adapter belongs to.
        bundle_path: the folder of that bundle on the server.
        groups: names of the devices, group by group; those that came later are in the last one.
        takes_everyone: whether devices that come later belong to the last group.
        error_threshold: share of a group's devices, 0 to 1, above which failures end the rollout.
        soak_s: seconds that pass between the success of a group and the next.
        approve: whether the operator lets each group begin.
        state: where it is. ``waiting``: for the operator's approval of the next group.
        group: index of the group at work, or that begins next.
        soaks_until_s: end of the soak, in seconds since 1970 by the server's clock.
        paused_from: the state that a pause has interrupted.
        ends_as: what it is once every reachable device is back.
        reason: why it halted or was aborted.
        devices: each device, by name.
    """

    kind: ReleaseKind
    sha256: str
    size_bytes: int
    path: str
    bundle_sha256: str | None = None
    bundle_path: str | None = None
    groups: list[list[str]]
    takes_everyone: bool
    error_threshold: float
    soak_s: float
    approve: bool
    state: State
    group: int = 0
    soaks_until_s: float | None = None
    paused_from: State | None = None
    ends_as: Literal["halted", "aborted"] | None = None
    reason: str = ""
    devices: dict[str, DeviceEntry]

    @property
    def groups_begun(self) -> int:
        """Number of groups that have begun."""
        state = self.paused_from if self.state == "paused" else self.state
        return self.group if state == "waiting" else self.group + 1


def begin(rollout: Rollout) -> Rollout:
    """Return a new rollout in its first state, with every device pending."""
    devices = {name: DeviceEntry() for group in rollout.groups for name in group}
    return _with(rollout, state="waiting" if rollout.approve else "running", group=0, devices=devices)


def wanted(rollout: Rollout, device: str) -> Step | None:
    """Return what a device is to do, and has not done yet: switch, go back, or nothing."""
    entry = rollout.devices.get(device, DeviceEntry())
    if rollout.state in _BACK:
        return "back" if _must_go_back(entry) else None
    return "switch" if entry.state in _ASKED else None


def step(rollout: Rollout, here: Collection[str], now_s: float) -> Rollout:
    """Return the rollout after a look at the fleet and the clock: it asks devices, goes on, halts or ends.

    Args:
        rollout: the rollout.
        here: names of the devices that can be reached.
        now_s: seconds since 1970.
    """
    if rollout.state == "rolling-back":
        left = [name for name, entry in rollout.devices.items() if _must_go_back(entry) and name in here]
        return rollout if left else _with(rollout, state=rollout.ends_as or "halted")
    if rollout.state in ("halted", "aborted"):
        return rollout
    if rollout.state != "finished" and (broken := _over_threshold(rollout)) is not None:
        return _back(rollout, "halted", broken)
    if rollout.state == "paused":
        return rollout
    # Whoever comes late to a finished rollout gets it too, and changes nothing for the others.
    return _go_on(_ask(_with_newcomers(rollout, here), here), here, now_s)


def _go_on(rollout: Rollout, here: Collection[str], now_s: float) -> Rollout:
    """Return the rollout with its group's soak begun, or with the next group begun, or finished, if that is due."""
    if rollout.state == "running" and _has_succeeded(rollout):
        rollout = _with(rollout, state="soaking", soaks_until_s=now_s + rollout.soak_s)
    is_over = rollout.soaks_until_s is not None and now_s >= rollout.soaks_until_s
    if rollout.state != "soaking" or not is_over or not _has_succeeded(rollout):
        return rollout
    if rollout.group + 1 == len(rollout.groups):
        return _with(rollout, state="finished", soaks_until_s=None)
    state = "waiting" if rollout.approve else "running"
    return _ask(_with(rollout, state=state, group=rollout.group + 1, soaks_until_s=None), here)


def took(rollout: Rollout, device: str, outcome: Outcome, reason: str) -> Rollout:
    """Return the rollout after a device's answer; one that does not fit what it was asked changes nothing."""
    entry = rollout.devices.get(device)
    if entry is None or entry.state == "pending":
        return rollout
    goes_back = rollout.state in _BACK
    if (goes_back and outcome == "fetching") or (not goes_back and outcome == "rolled-back"):
        return rollout  # an answer to what is not wanted any more; the device is asked again
    if outcome == "fetching" and entry.state not in _ASKED:
        return rollout
    return _with(rollout, devices={**rollout.devices, device: DeviceEntry(outcome, reason[:_LONGEST_REASON])})


def pause(rollout: Rollout) -> Rollout:
    """Return the rollout paused: no further device is asked.

    Raises:
        RolloutError: it is not at work.
    """
    if rollout.state not in ("running", "soaking", "waiting"):
        raise RolloutError(f"cannot pause the rollout: it is {rollout.state}", "see: covey rollout show")
    return _with(rollout, state="paused", paused_from=rollout.state)


def resume(rollout: Rollout) -> Rollout:
    """Return the rollout at work again after a pause, or with its next group approved.

    Raises:
        RolloutError: it neither is paused nor waits for approval.
    """
    if rollout.state == "paused":
        return _with(rollout, state=rollout.paused_from or "running", paused_from=None)
    if rollout.state == "waiting":
        owing = [name for group in _begun(rollout) for name in group if rollout.devices[name].state in _ASKED]
        if owing or _over_threshold(rollout) is not None:
            raise RolloutError(
                f"the next group cannot begin: {', '.join(owing) or 'too many devices'} of those before "
                f"{'owe an answer' if owing else 'failed'}",
                "see: covey rollout show",
            )
        return _with(rollout, state="running")
    raise RolloutError(f"cannot resume the rollout: it is {rollout.state}", "see: covey rollout show")


def abort(rollout: Rollout, reason: str) -> Rollout:
    """Return the rollout on its way back, on the operator's word.

    Raises:
        RolloutError: it goes back already, or has gone back; one that is finished can be aborted.
    """
    if rollout.state in _BACK:
        raise RolloutError(f"cannot abort the rollout: it is {rollout.state}", "see: covey rollout show")
    return _back(rollout, "aborted", reason)


def forget(rollout: Rollout, known: Collection[str]) -> Rollout:
    """Return the rollout without the devices that the operator has forgotten; nobody waits for them."""
    if all(name in known for name in rollout.devices):
        return rollout
    groups = [[name for name in group if name in known] for group in rollout.groups]
    devices = {name: entry for name, entry in rollout.devices.items() if name in known}
    return _with(rollout, groups=groups, devices=devices)


# -- insides -----------------------------------------------------------------------------------------------------


def _with(rollout: Rollout, **changes: object) -> Rollout:
    return msgspec.structs.replace(rollout, **changes)


def _must_go_back(entry: DeviceEntry) -> bool:
    return entry.state in (*_ASKED, "switched")


def _back(rollout: Rollout, ends_as: Literal["halted", "aborted"], reason: str) -> Rollout:
    return _with(rollout, state="rolling-back", ends_as=ends_as, reason=reason, paused_from=None, soaks_until_s=None)


def _begun(rollout: Rollout) -> list[list[str]]:
    return rollout.groups[: rollout.groups_begun]


def _over_threshold(rollout: Rollout) -> str | None:
    """Return which group has more failures than are allowed, and the first reason; None: no group has."""
    for index, group in enumerate(_begun(rollout)):
        failed = [name for name in group if rollout.devices[name].state == "failed"]
        if group and len(failed) > rollout.error_threshold * len(group):
            first = rollout.devices[failed[0]].reason
            return f"group {index + 1}: {len(failed)} of {len(group)} devices failed; {failed[0]}: {first}"
    return None


def _with_newcomers(rollout: Rollout, here: Collection[str]) -> Rollout:
    new = sorted(set(here) - set(rollout.devices)) if rollout.takes_everyone else []
    if not new:
        return rollout
    groups = [*rollout.groups[:-1], [*rollout.groups[-1], *new]]
    return _with(rollout, groups=groups, devices={**rollout.devices, **{name: DeviceEntry() for name in new}})


def _ask(rollout: Rollout, here: Collection[str]) -> Rollout:
    asked = {
        name: DeviceEntry("offered")
        for group in _begun(rollout)
        for name in group
        if name in here and rollout.devices[name].state == "pending"
    }
    return _with(rollout, devices={**rollout.devices, **asked}) if asked else rollout


def _has_succeeded(rollout: Rollout) -> bool:
    """Whether no device that was asked owes its answer, and at least one of the group at work has switched."""
    states: Mapping[str, str] = {name: rollout.devices[name].state for group in _begun(rollout) for name in group}
    of_group = [states[name] for name in rollout.groups[rollout.group]]
    return not any(state in _ASKED for state in states.values()) and (not of_group or "switched" in of_group)
