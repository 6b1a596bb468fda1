"""Deaths while training: what is begun is in the journal, and what has killed the device twice is refused."""

from __future__ import annotations

import logging
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.memory_need import bytes_for, level_need
from edge_runtime.errors import BundleError, StorageError, TrainingError
from edge_runtime.protocol.messages import BackpropPlan
from edge_runtime.store.journal import Begun

if TYPE_CHECKING:
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.device.machine import Machine
    from edge_runtime.protocol.messages import TrainPlan
    from edge_runtime.store.journal_file import JournalFile

MOST_DEATHS = 2
"""Deaths of the same work after which it is refused."""
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
    )


def _bytes_needed(plan: BackpropPlan, loaded: LoadedBundle) -> int | None:
    try:
        need = level_need(loaded.bundle.manifest, plan.level, loaded.engines.runtime)
    except BundleError:
        return None  # check_plan says so
    return bytes_for(need, plan.stld.fewest_rows)


def enter_death(journal: JournalFile) -> None:
    """Enter, when a process starts, that the one before it died while it trained, and say so in the log."""
    try:
        deaths = journal.enter_death()
    except StorageError as error:
        _LOG.warning("the last end of this device, while it trained, is not counted: %s", error)
        return
    if deaths is None:
        return
    last = deaths.last
    began = datetime.fromtimestamp(last.began_at, tz=timezone.utc).isoformat(timespec="seconds")
    _LOG.warning(
        "this device ended while it trained round %d of job %s, begun at %s%s: %d in a row; work that ends it %d times "
        "is refused",
        last.round,
        last.job,
        began,
        _memory(last),
        deaths.count,
        MOST_DEATHS,
    )


def check_deaths(plan: TrainPlan | BackpropPlan, journal: JournalFile) -> None:
    """Check that a plan is none that this device has died of twice, in this round or the ones before.

    The work is refused in one round. It is tried again in a later round, as the device may have more memory by then;
    one more death then refuses it again. A report forgets the deaths.

    Raises:
        TrainingError: it is one; the server gives the device less.
        StorageError: the journal cannot be written.
    """
    deaths = journal.entries.deaths
    level = plan.level if isinstance(plan, BackpropPlan) else None
    work = (plan.job, plan.bundle_sha256, "forward-only" if level is None else "backprop", level)
    if deaths is None or deaths.last.work != work or deaths.count < MOST_DEATHS:
        return
    if deaths.refused_round not in (None, plan.round):
        journal.change_deaths(msgspec.structs.replace(deaths, count=MOST_DEATHS - 1, refused_round=None))
        return
    journal.change_deaths(msgspec.structs.replace(deaths, refused_round=plan.round))
    is_one_plan = "this plan" if deaths.last.round == plan.round else "such a plan"
    raise TrainingError(
        f"this device died twice while it trained {is_one_plan}, probably for want of memory{_memory(deaths.last)}",
        "lower batch_size or max_tokens, or free some memory"
        if level is None
        else "lower the level or micro_batch_size in the job's [stld], or free some memory",
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
