"""What a hierarchy of servers keeps to the bit: reports that regions pass on, and not adapters that they make."""

from __future__ import annotations

import itertools

import numpy as np
from byzantine import PARAMETERS, SIZE, softmax_job

from edge_runtime.forward_only.replay import replay
from edge_runtime.protocol.round_log import RoundLog, encode_chain, pack_scalars
from server.rounds.aggregate import aggregate
from server.storage.adapters import RoundBase
from server.storage.records import RoundPlan, TakenReport

SHA = "0" * 64
JOB = softmax_job(weighting="examples")
NAMES = [f"d{index}" for index in range(9)]


def reports() -> dict[str, TakenReport]:
    rng = np.random.Generator(np.random.PCG64(0))
    shape = JOB.steps * JOB.step.scalars_per_step
    return {
        name: TakenReport(pack_scalars(rng.normal(size=shape).astype(np.float32)), 5 + index)
        for index, name in enumerate(NAMES)
    }


def log_of(taken: dict[str, TakenReport]) -> RoundLog:
    return aggregate(PARAMETERS, JOB, 0, RoundPlan(1, JOB.step), RoundBase(SHA, None, None), taken).log


def test_reports_that_regions_pass_on_give_the_flat_rounds_bits() -> None:
    """However the devices are divided among regions, and in whatever order these answer."""
    taken = reports()
    flat = encode_chain([log_of(taken)])
    for regions in (1, 2, 3, 9):
        parts = [{name: taken[name] for name in NAMES[start::regions]} for start in range(regions)]
        for order in itertools.islice(itertools.permutations(parts), 6):
            passed_on = {name: report for part in order for name, report in part.items()}
            assert encode_chain([log_of(passed_on)]) == flat


def test_the_mean_of_regional_adapters_is_close_and_has_other_bits() -> None:
    taken, theta = reports(), np.zeros(SIZE, dtype=np.float32)
    flat = replay(theta, log_of(taken))
    rows, found = sum(report.examples for report in taken.values()), np.zeros(SIZE, dtype=np.float32)
    for start in range(3):
        part = {name: taken[name] for name in NAMES[start::3]}
        share = np.float32(sum(report.examples for report in part.values()) / rows)
        found += share * replay(theta, log_of(part))
    np.testing.assert_allclose(found, flat, atol=1e-5)
    assert found.tobytes() != flat.tobytes()
