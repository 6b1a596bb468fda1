"""Round logs with random scalars, for tests of replay on every side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from hypothesis import strategies as st

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.forward_only.replay import compact, replay
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, pack_scalars
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from edge_runtime.values import FloatVector

N, FRONT_SIZE = 300, 130
RULES = [
    StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True),
    StepRule(variant="clean", difference="forward", normalize="std"),
    StepRule(front_perturbations=3, back_perturbations=1, shared_directions=True, normalize="none", learning_rate=1e-4),
    StepRule(seed_pool=5),
]
"""The rules of the core's self-test, in its order."""
rules = st.builds(
    StepRule,
    variant=st.sampled_from(["nested", "clean"]),
    front_perturbations=st.integers(1, 3),
    back_perturbations=st.integers(2, 5),
    eps=st.floats(1e-4, 0.5),
    learning_rate=st.floats(1e-4, 1.0),
    leave_one_out=st.booleans(),
    difference=st.sampled_from(["central", "forward"]),
    normalize=st.sampled_from(["none", "rms", "std"]),
    shared_directions=st.booleans(),
    seed_pool=st.none() | st.integers(1, 7),
).filter(lambda rule: not (rule.leave_one_out and rule.variant == "clean"))
"""Every switch of a step, in combinations that can be."""
THETA = np.linspace(-1, 1, N, dtype=np.float32)


def make_log(
    rule: StepRule, devices: list[DeviceScalars] | int = 2, steps: int = 2, seed: int = 0, **changes: Any
) -> RoundLog:
    """A log of one round; ``changes`` are fields."""
    rng = np.random.Generator(np.random.PCG64(seed))
    if isinstance(devices, int):
        shape = (steps, rule.scalars_per_step)
        devices = [
            DeviceScalars(f"device-{index}", 1 / devices, pack_scalars(rng.normal(size=shape).astype(np.float32)))
            for index in range(devices)
        ]
    log = RoundLog(
        job="job",
        job_seed=11,
        round=3,
        rule=rule,
        front_size=FRONT_SIZE,
        steps=steps,
        mean_square=None,
        momentum=0.0,
        previous_sha256=None,
        base_sha256="0" * 64,
        result_sha256="0" * 64,
        devices=devices,
        terms=None,
    )
    return msgspec.structs.replace(log, **changes)


def chain_of(
    rule: StepRule, rounds: int, devices: int, momentum: float, theta: FloatVector, front_size: int = FRONT_SIZE
) -> tuple[list[RoundLog], list[FloatVector]]:
    """Logs of consecutive rounds, and the adapters before, between and after them."""
    logs, thetas = [], [theta]
    for index in range(rounds):
        before = adapter_sha256(thetas[-2]) if momentum and index else None
        log = make_log(
            rule,
            devices,
            seed=index,
            round=index,
            momentum=momentum,
            previous_sha256=before,
            front_size=front_size,
            base_sha256=adapter_sha256(thetas[-1]),
            mean_square=0.5 if index else None,
        )
        thetas.append(replay(thetas[-1], log, thetas[-2] if before else None))
        logs.append(compact(msgspec.structs.replace(log, result_sha256=adapter_sha256(thetas[-1]))))
    return logs, thetas
