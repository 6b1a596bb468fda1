"""What the pages can have done: for each action its words, and the operation that does it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from edge_runtime.errors import ConfigError
from edge_runtime.values import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.queue.operations import Operations
    from server.storage.audit_records import Asker


@dataclass(frozen=True)
class Action:
    """One action.

    Attributes:
        title: of its page; ``{0}`` is the target.
        effect: what will happen, as sentences.
        button: what the button says.
        back: path of the page of the target's kind; with ``{0}``, of the target.
        do: does it: operations, target, value, who asks.
        field: label of a value that it needs; empty: none.
        after: where the browser goes then; empty: ``back``.
    """

    title: str
    effect: str
    button: str
    back: str
    do: Callable[[Operations, str, str, Asker], object]
    field: str = ""
    after: str = ""

    def place(self, target: str, *, is_done: bool) -> str:
        """Return the path of the page that follows."""
        return ((is_done and self.after) or self.back).format(quote(target, safe=""))


_JOB, _DEVICE, _ROLLOUTS, _JOINS = "/ui/jobs/{0}", "/ui/devices/{0}", "/ui/rollouts", "/ui/joins"


def checked(target: str, value: str, action: Action) -> None:
    """Check what an action is done to, and its value.

    Raises:
        ConfigError: it can be no name, or no rollout's number.
    """
    if action.back == _ROLLOUTS:
        if re.fullmatch(r"[1-9][0-9]{0,8}", target, re.ASCII) is None:
            raise ConfigError("the target is no rollout's number", "begin at the page of rollouts")
    elif re.match(NAME_PATTERN, target) is None:
        raise ConfigError("the target can be no name of a job or device", "begin at the page of the job or the device")
    if action.field and value and re.match(NAME_PATTERN, value) is None:
        raise ConfigError(f"this can be no {action.field.lower()}", "use up to 63 letters, digits, dots and dashes")


def _numbered(do: Callable[[Operations, int, Asker], object]) -> Callable[[Operations, str, str, Asker], object]:
    return lambda operations, target, _value, asker: do(operations, int(target), asker)


ACTIONS = {
    "pause": Action(
        "Pause job {0}?",
        "The open round goes on to its end. Then the job asks no device until it is resumed; nothing is lost.",
        "Pause the job",
        _JOB,
        lambda operations, job, _value, asker: operations.pause(job, asker),
    ),
    "resume": Action(
        "Start job {0} again?",
        "The job is queued, and goes on after its last closed round when its devices are free.",
        "Start the job",
        _JOB,
        lambda operations, job, _value, asker: operations.resume(job, asker),
    ),
    "stop": Action(
        "Stop job {0}?",
        "The open round is given up at once: what its devices have computed in it is lost. Closed rounds stay.",
        "Stop the job",
        _JOB,
        lambda operations, job, _value, asker: operations.stop(job, asker),
    ),
    "delete": Action(
        "Delete job {0}?",
        "The job, its rounds, its adapters and its result are deleted. This cannot be undone.",
        "Delete the job",
        _JOB,
        lambda operations, job, _value, asker: operations.delete(job, asker),
        after="/ui/jobs",
    ),
    "approve": Action(
        "Let {0} join?",
        "The device gets its certificate when it asks next, in a few seconds. "
        "Compare the hash of its key with the one that the device shows.",
        "Approve the device",
        _JOINS,
        lambda operations, device, _value, asker: operations.trust.decide(device, "approved", asker),
    ),
    "reject": Action(
        "Turn {0} away?",
        "The device is told that it may not join, and its token is used up.",
        "Reject the device",
        _JOINS,
        lambda operations, device, _value, asker: operations.trust.decide(device, "rejected", asker),
    ),
    "revoke": Action(
        "Revoke {0}?",
        "All certificates of the device and its unused tokens are revoked, its connections are closed, and it is left "
        "out of the open round. It has to join again with a new token and a new key.",
        "Revoke the device",
        _DEVICE,
        lambda operations, device, _value, asker: operations.trust.revoke(device, asker),
    ),
    "release": Action(
        "Let {0} out of quarantine?",
        "The device takes part in rounds again. Of the machines that used its name, one must be off now.",
        "Release the device",
        _DEVICE,
        lambda operations, device, _value, asker: operations.trust.release(device, asker),
    ),
    "tag": Action(
        "Give {0} a tag",
        "Jobs that name the tag in their devices can offer rounds to the device.",
        "Give the tag",
        _DEVICE,
        lambda operations, device, tag, asker: operations.tag(device, tag, asker),
        field="Tag",
    ),
    "untag": Action(
        "Take a tag from {0}",
        "Jobs that name the device by this tag offer it no further round. Tags of its edge.toml are removed there.",
        "Take the tag",
        _DEVICE,
        lambda operations, device, tag, asker: operations.untag(device, tag, asker),
        field="Tag",
    ),
    "rename": Action(
        "Give {0} another name",
        "The device takes the name when it asks the server next: at once after covey-edge renew there. Until then it "
        "has the old one. What it did before stays under the old name.",
        "Rename the device",
        _DEVICE,
        lambda operations, device, name, asker: operations.trust.rename(device, name, asker),
        field="New name",
    ),
    "forget": Action(
        "Forget {0}?",
        "Its entry, tags and profiles are deleted, and its certificates and tokens are revoked. What it did in jobs "
        "stays. A device that is here cannot be forgotten.",
        "Forget the device",
        _DEVICE,
        lambda operations, device, _value, asker: operations.forget(device, asker),
        after="/ui/",
    ),
    "rollout-pause": Action(
        "Pause rollout {0}?",
        "No further device is asked until it is resumed; devices that were asked go on.",
        "Pause the rollout",
        _ROLLOUTS,
        _numbered(lambda operations, number, asker: operations.rollouts.pause(number, asker)),
    ),
    "rollout-resume": Action(
        "Let rollout {0} go on?",
        "After a pause it goes on; where it waits for approval, the next group is asked.",
        "Resume the rollout",
        _ROLLOUTS,
        _numbered(lambda operations, number, asker: operations.rollouts.resume(number, asker)),
    ),
    "rollout-abort": Action(
        "Take rollout {0} back?",
        "Every device that was asked returns to the version before. Devices that are away go back when they come.",
        "Take the rollout back",
        _ROLLOUTS,
        _numbered(lambda operations, number, asker: operations.rollouts.abort(number, asker)),
    ),
}
"""By the name in the page's address."""
