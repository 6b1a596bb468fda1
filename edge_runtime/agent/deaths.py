"""Deaths while training: what is begun is in the journal, and what kills the device again and again is refused."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.memory_need import bytes_for, level_need
from edge_runtime.errors import BundleError, StorageError, TrainingError
from edge_runtime.protocol.plans import BackpropPlan
from edge_runtime.store.journal import Begun

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.device.machine import Machine
    from edge_runtime.protocol.plans import TrainPlan
    from edge_runtime.store.journal import Deaths
    from edge_runtime.store.journal_file import JournalFile

MOST_DEATHS = 2
"""Deaths of the same work after which it is refused."""

MOST_RESTARTS = 4
"""Starts of the whole machine during the same work after which it is refused."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 120.0, 6 * 3600.0
"""How long work is refused before it is tried again: the first time, and at most; it doubles."""
_LOG = logging.getLogger(__name__)


def begun_of(plan: TrainPlan | BackpropPlan, loaded: LoadedBundle, machine: Machine) -> Begun:
    """Return what the journal says of a plan before it is trained.

    Args:
        plan: the plan.
        loaded: its bundle.
        machine: says the time, and how much memory is free.
    """
    level = plan.level if isinstance(plan, BackpropPlan) else None
    return Begun(
        job=plan.job,
        bundle_sha256=plan.bundle_sha256,
        round=plan.round,
        attempt=plan.attempt,
        kind="forward-only" if level is None else "backprop",
        level=level,
        began_at=machine.wall_clock(),
        bytes_needed=_bytes_needed(plan, loaded) if isinstance(plan, BackpropPlan) else None,
        bytes_free=machine.free_bytes(),
        machine_boot_id=machine.boot_id,
    )


def _bytes_needed(plan: BackpropPlan, loaded: LoadedBundle) -> int | None:
    try:
        need = level_need(loaded.bundle.manifest, plan.level, loaded.engines.runtime)
    except BundleError:
        return None  # check_plan says so
    return bytes_for(need, plan.stld.fewest_rows)


class DeathWatch:
    """Remembers what this device has died of, and refuses it for a while.

    Where the process alone has died, memory was probably short: twice is enough. Where the whole machine has started
    again, somebody has probably pulled the plug; but a board that hangs for want of memory looks the same, so that
    work which is interrupted again and again is refused as well.

    Args:
        journal: has the deaths.
        clock: returns monotonic seconds.
    """

    def __init__(self, journal: JournalFile, clock: Callable[[], float]) -> None:
        self._journal, self._clock = journal, clock
        self._refused_at: float | None = None

    def enter(self, machine_boot_id: str | None) -> None:
        """Enter, when a process starts, that the one before it died while it trained, and say so in the log."""
        try:
            deaths = self._journal.enter_death(machine_boot_id)
        except StorageError as error:
            _LOG.warning("the last end of this device, while it trained, is not counted: %s", error)
            return
        if deaths is None:
            return
        last = deaths.last
        began = datetime.fromtimestamp(last.began_at, tz=timezone.utc).isoformat(timespec="seconds")
        _LOG.warning(
            "this device ended while it trained round %d of job %s, begun at %s%s: %d times in a row, and %d times the "
            "whole machine started again; work that ends it %d times, or the machine %d times, is refused for a while",
            last.round,
            last.job,
            began,
            _memory(last),
            deaths.count,
            deaths.restarts,
            MOST_DEATHS,
            MOST_RESTARTS,
        )

    def check(self, plan: TrainPlan | BackpropPlan) -> None:
        """Check that a plan is none that this device has died of, in this round or the ones before.

        The work is refused for some minutes, and longer each time, or until the next round. Then it is tried once more,
        as the device may have more memory by then; one more death refuses it again. A report forgets the deaths.

        Raises:
            TrainingError: it is one; the server gives the device less.
            StorageError: the journal cannot be written.
        """
        deaths = self._journal.entries.deaths
        level = plan.level if isinstance(plan, BackpropPlan) else None
        work = (plan.job, plan.bundle_sha256, "forward-only" if level is None else "backprop", level)
        if deaths is None or deaths.last.work != work:
            return
        if deaths.count < MOST_DEATHS and deaths.restarts < MOST_RESTARTS:
            return
        now = self._clock()
        if self._refused_at is None:
            self._refused_at = now
        pause_s = min(FIRST_PAUSE_S * 2**deaths.refusals, LONGEST_PAUSE_S)
        is_over = now - self._refused_at >= pause_s
        if is_over or deaths.refused_round not in (None, plan.round):
            self._refused_at = None
            self._journal.change_deaths(
                msgspec.structs.replace(
                    deaths,
                    count=min(deaths.count, MOST_DEATHS - 1),
                    restarts=min(deaths.restarts, MOST_RESTARTS - 1),
                    refused_round=None,
                    refusals=deaths.refusals + is_over,
                )
            )
            return
        self._journal.change_deaths(msgspec.structs.replace(deaths, refused_round=plan.round))
        raise _refusal(plan, deaths, pause_s - (now - self._refused_at))


def _refusal(plan: TrainPlan | BackpropPlan, deaths: Deaths, left_s: float) -> TrainingError:
    is_one_plan = "this plan" if deaths.last.round == plan.round else "such a plan"
    if deaths.count >= MOST_DEATHS:
        what = f"this device died twice while it trained {is_one_plan}, probably for want of memory"
    else:
        what = f"this device's machine has started again {deaths.restarts} times while it trained {is_one_plan}"
    less = (
        "lower batch_size or max_tokens, or free some memory"
        if not isinstance(plan, BackpropPlan)
        else "lower the level or micro_batch_size in the job's [stld], or free some memory"
    )
    return TrainingError(
        f"{what}{_memory(deaths.last)}; it tries it again in {max(1, round(left_s / 60))} min, or in the next round",
        less,
    )


def _memory(begun: Begun) -> str:
    """Return what is known of the memory, in words that follow others; empty: nothing is known."""
    needed, free = begun.bytes_needed, begun.bytes_free
    known = [
        f"{_megabytes(number)} {what}" for number, what in ((needed, "needed"), (free, "there")) if number is not None
    ]
    return f": {', '.join(known)}" if known else ""


def _megabytes(number: int) -> str:
    return f"{number / 1e6:.0f} MB" if number >= 10e6 else f"{number / 1e6:.1f} MB"
