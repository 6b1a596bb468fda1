"""Which waiting jobs may start now: a device works for one job at a time, jobs of different devices side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from server.job.selector import Selector


@dataclass(frozen=True)
class Waiting:
    """A job that waits for its turn.

    Attributes:
        name: name of the job.
        selector: its devices.
        after: the job that must be finished before it; None: none.
    """

    name: str
    selector: Selector
    after: str | None = None


@dataclass(frozen=True)
class Schedule:
    """What follows for the waiting jobs.

    Attributes:
        start: jobs that start now, in order.
        reasons: why each other job waits, by name.
    """

    start: list[str]
    reasons: dict[str, str]


def schedule(
    waiting: Sequence[Waiting],
    running: Mapping[str, Selector],
    states: Mapping[str, str],
    devices: Mapping[str, Collection[str]],
) -> Schedule:
    """Return which waiting jobs start, and why the others wait.

    A job keeps its devices free of those behind it while it waits for them, so no job can be overtaken for ever.

    Args:
        waiting: jobs that wait, the first to start first.
        running: the devices of the jobs at work, by job.
        states: state of every job, by name.
        devices: tags of the devices that are known, by name.
    """
    start: list[str] = []
    reasons: dict[str, str] = {}
    claimed = dict(running)
    for job in waiting:
        if job.after is not None and states.get(job.after) != "finished":
            state = states.get(job.after, "not there any more")
            reasons[job.name] = f"waits for {job.after}, which is {state}"
            continue
        others = [name for name, selector in claimed.items() if selector.overlaps(job.selector, devices)]
        if others:
            reasons[job.name] = f"waits for devices of {', '.join(others)}"
        else:
            start.append(job.name)
        claimed[job.name] = job.selector
    return Schedule(start, reasons)


def owner_of(device: str, tags: Collection[str], running: Mapping[str, Selector]) -> str | None:
    """Return the job that a device works for: the first at work that it fits; None: none.

    Args:
        device: name of the device.
        tags: its tags.
        running: the devices of the jobs at work, by job, the oldest first.
    """
    return next((job for job, selector in running.items() if selector.fits(device, tags)), None)
