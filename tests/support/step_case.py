"""Full steps of a tiny bundle, and what must follow from them: the same code runs here and on an emulated board."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases
from edge_runtime.forward_only.coefficients import apply_step, step_coefficients
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.replay import replay
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.perturbation.perturb import BACK, FRONT, perturb_into
from edge_runtime.protocol.round_log import DeviceScalars, RoundLog, decode_chain, encode_chain, pack_scalars
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector

DEVICE, JOB_SEED, ROUND, STEPS, SPLIT = "board", 11, 3, 2, 1
RULE = StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True, eps=0.01, learning_rate=0.01)


@dataclass(frozen=True)
class Steps:
    """What a device has measured: the round's log, encoded; the loss of each step."""

    chain: bytes
    losses: list[float]

    def log(self) -> RoundLog:
        """Return the log, decoded."""
        return decode_chain(self.chain)[0]


def start_of(bundle: Bundle) -> FloatVector:
    """Return the adapter of the golden vectors, in which every parameter matters."""
    return golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)


def take_steps(bundle: Bundle) -> Steps:
    """Train the bundle for a round, as a device does; the log says on what bits it ended."""
    engine = Engines("onnxruntime", threads=1).make_engine(bundle, SPLIT)
    theta, batch = start_of(bundle), next(golden_cases(bundle)).batch
    local, mean_square, scalars, losses = theta.copy(), None, [], []
    for step in range(STEPS):
        seeds = step_seeds(RULE, JOB_SEED, ROUND, DEVICE, step)
        result = spzo_step(engine, local, batch, RULE, seeds)
        coefficients, mean_square = step_coefficients(result.scalars.tolist(), RULE, mean_square)
        apply_step(local, engine.front_workspace.size, seeds, coefficients)
        scalars.append(pack_scalars(result.scalars))
        losses.append(result.loss)
    log = RoundLog(
        job="job",
        job_seed=JOB_SEED,
        round=ROUND,
        rule=RULE,
        front_size=engine.front_workspace.size,
        steps=STEPS,
        mean_square=None,
        momentum=0.0,
        previous_sha256=None,
        base_sha256=adapter_sha256(theta),
        result_sha256=adapter_sha256(local),
        devices=[DeviceScalars(DEVICE, 1.0, b"".join(scalars))],
        terms=None,
    )
    return Steps(encode_chain([log]), losses)


def replayed_sha256(bundle: Bundle, steps: Steps) -> str:
    """Return the hash of the adapter that the log gives; the base's hash must be the log's."""
    theta, log = start_of(bundle), steps.log()
    assert adapter_sha256(theta) == log.base_sha256
    return adapter_sha256(replay(theta, log))


def workspaces_sha256(bundle: Bundle) -> str:
    """Return the hash of what a first step writes into the engine's two blocks: theta, perturbed to both sides."""
    theta, found = start_of(bundle), hashlib.sha256()
    seeds = step_seeds(RULE, JOB_SEED, ROUND, DEVICE, 0)
    for block, block_seeds in ((FRONT, seeds.front), (BACK, seeds.back)):
        for seed in block_seeds:
            for scale in (RULE.eps, -RULE.eps):
                out = theta.copy()
                perturb_into(out, theta, seed, block, scale)
                found.update(out.tobytes())
    return found.hexdigest()
