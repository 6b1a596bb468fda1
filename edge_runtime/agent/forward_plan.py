"""A forward-only plan on a device: from the plan to the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.forward_only.round import RoundWork, train_round
from edge_runtime.protocol.messages import RoundReport, TrainPlan
from edge_runtime.protocol.round_log import pack_scalars

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.agent.loaded_bundle import Workshop
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.values import FloatVector


def do_forward(
    plan: TrainPlan,
    device: str,
    workshop: Workshop,
    theta: FloatVector,
    goes_on: Callable[[int, float], bool],
    clock: Callable[[], float],
) -> RoundReport | None:
    """Train a plan's round with forward passes.

    Args:
        plan: what to do.
        device: the device's name.
        workshop: bundle, rows and engine.
        theta: the adapter, float32, (parameters,).
        goes_on: told each step's index and loss; the round is given up when it returns False.
        clock: monotonic seconds.

    Returns:
        The report, what it does not know (link, rates, fetched bytes) left out; None where the round was given up.

    Raises:
        CoveyError: see train_round.
    """
    work = RoundWork(
        job_seed=plan.job_seed,
        round=plan.round,
        device=device,
        rule=plan.rule,
        steps=plan.steps,
        batch_size=plan.batch_size,
        mean_square=plan.mean_square,
        privacy=plan.privacy,
    )
    engine = workshop.engine(plan.split)
    started = clock()
    result = train_round(engine, theta, workshop.rows, work, goes_on, copy=workshop.copies, clock=clock)
    return None if result is None else report_of(plan, device, result, len(workshop.rows), clock() - started)


def report_of(plan: TrainPlan, device: str, result: RoundResult, examples: int, seconds: float) -> RoundReport:
    """Return the report of a round, what it does not say (link, rates, fetched bytes) left out.

    Args:
        plan: what was done.
        device: the device's name.
        result: what came out.
        examples: rows of private data.
        seconds: how long it took.
    """
    return RoundReport(
        job=plan.job,
        round=plan.round,
        attempt=plan.attempt,
        device=device,
        adapter_sha256=plan.adapter.file.sha256,  # of the bytes that are trained: obtain_adapter has hashed them
        scalars=pack_scalars(result.scalars),
        examples=examples,
        loss=None if plan.privacy is not None else result.loss,
        seconds=seconds,
        front_passes=result.front_passes,
        back_passes=result.back_passes,
        front_seconds=result.front_seconds,
        back_seconds=result.back_seconds,
        link_bytes_per_s=None,
        replay_parameters_per_s=None,
        blob_bytes=0,
    )
