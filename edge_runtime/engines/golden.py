"""Golden vectors: a device compares a bundle's graphs with the losses and logits that PyTorch gave at export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.bundle.behind import find_behind
from edge_runtime.bundle.decode import Decode
from edge_runtime.bundle.levels import kind_of, trained_layers
from edge_runtime.bundle.manifest import output_names
from edge_runtime.bundle.stack import StackGraph
from edge_runtime.data.batch import IGNORED, Batch, CompletionBatch
from edge_runtime.engines.back_stack import stacked_losses
from edge_runtime.engines.bundle_engine import BundleFront
from edge_runtime.engines.choose import ONNX_RUNTIME, Engines
from edge_runtime.errors import BundleError
from edge_runtime.files.tensor_file import map_tensors
from edge_runtime.perturbation.perturb import FRONT, perturb_into

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Golden
    from edge_runtime.engines.back_stack import BundleBackStack
    from edge_runtime.engines.bundle_engine import BundleEngine
    from edge_runtime.engines.onnx_decode import OnnxDecoder
    from edge_runtime.values import FloatVector


@dataclass(frozen=True)
class GoldenCase:
    """One batch with PyTorch's results: the loss, and the first of the task's outputs."""

    batch: Batch
    loss: float
    logits: FloatVector


@dataclass(frozen=True)
class Parity:
    """Largest differences from PyTorch eager over all golden batches and splits: absolute up to 1, relative above.

    ``logits`` are the token losses for causal-lm; ``gradients`` are those of the training graphs, 0 without any;
    ``decode`` are token losses of the decode graph, 0 without one.

    float32 itself is relative: logits near 30 differ by 3e-5 between any two orders of summation.
    """

    loss: float
    logits: float
    gradients: float = 0.0
    decode: float = 0.0


_SINGLE_TOKENS = 4
"""Tokens of each golden row that the decode graph reads one by one."""
_STACKED = 3
"""Adapters of a stack graph's golden vectors: the same first and last, and another one between them."""
GRADIENT_TOLERANCE = 1e-4
"""Largest difference allowed between gradients, which sum over more terms than a loss."""


def training_layers(level: Level, n_layers: int) -> list[int]:
    """Return the layers that a level's golden vectors train: the last ones, or evenly spread, including the last."""
    trained = trained_layers(level)
    if kind_of(level) == "top":
        return list(range(n_layers - trained, n_layers))
    return [((slot + 1) * n_layers - 1) // trained for slot in range(trained)]


def golden_adapter(initial: FloatVector, golden: Golden) -> FloatVector:
    """Return the adapter at which the golden vectors were computed."""
    theta = np.empty_like(initial)
    perturb_into(theta, initial, golden.seed, FRONT, golden.scale)
    return theta


def golden_cases(bundle: Bundle) -> Iterator[GoldenCase]:
    """Yield the bundle's golden batches."""
    golden, output = bundle.manifest.golden, output_names(bundle.manifest.task.kind)[0]
    tensors = map_tensors(bundle.file(golden.file))
    for n in range(golden.batches):
        try:
            batch = Batch(tensors[f"{n}.input_ids"], tensors[f"{n}.attention_mask"], tensors[f"{n}.labels"])
            if output == "token_losses":
                positions = tensors[f"{n}.positions"]
                batch = CompletionBatch(batch.input_ids, batch.attention_mask, batch.labels, positions)
            yield GoldenCase(batch, float(tensors[f"{n}.loss"]), tensors[f"{n}.{output}"])
        except KeyError as error:
            raise BundleError(f"{golden.file} does not hold {error}", "export the bundle again") from error


def measure_parity(bundle: Bundle, engines: Engines = ONNX_RUNTIME) -> Parity:
    """Run every golden batch through ``predict``, every split's front and back, and the decode graph.

    Stack graphs take three adapters at once. The first batch also runs through the training graphs.

    Raises:
        BundleError: a graph cannot be loaded.
    """
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    cases, output = list(golden_cases(bundle)), output_names(bundle.manifest.task.kind)[0]
    predictor = engines.make_predictor(bundle)
    logits = [_difference(predictor.outputs(theta, case.batch)[output], case.logits) for case in cases]
    del predictor  # one graph's memory at a time: a small board has no more
    losses = [0.0]
    for split in bundle.manifest.splits:
        engine = engines.make_engine(bundle, split)
        for case in cases:
            # Each workspace is written just before its block runs: they may lie in the same memory.
            np.copyto(engine.front_workspace, theta[: engine.front_workspace.size])
            boundary = engine.front(case.batch)
            np.copyto(engine.back_workspace, theta[engine.front_workspace.size :])
            losses.append(_difference(np.float32(engine.back(boundary, case.batch)), np.float32(case.loss)))
            logits.append(_difference(engine.back_outputs(boundary, case.batch)[output], case.logits))
        if isinstance(engines.find_stack(bundle, split), StackGraph):
            losses += _stack_differences(bundle, theta, cases, engine, engines.make_back_stack(bundle, split, _STACKED))
        del engine
    gradients = [0.0]
    if bundle.manifest.levels_for(engines.runtime):
        found = _training_differences(bundle, theta, cases[0].batch, engines)
        found += _behind_differences(bundle, theta, cases[0].batch, engines)
        losses += [loss for loss, _ in found]
        gradients += [gradient for _, gradient in found]
    decode = engines.find_decode(bundle)
    decoded = [0.0]
    if isinstance(decode, Decode):
        decoder = engines.make_decoder(bundle, decode)
        decoded = [_decode_difference(decoder, theta, case) for case in cases]
    return Parity(max(losses), max(logits), max(gradients), max(decoded))


def _stack_differences(
    bundle: Bundle, theta: FloatVector, cases: list[GoldenCase], engine: BundleEngine, stack: BundleBackStack
) -> list[float]:
    """Return the differences of stacked losses: from PyTorch's, and of another adapter from those one at a time."""
    found = []
    for case in cases:
        together, singly = stacked_losses(engine, stack, theta, bundle.initial_adapter(), case.batch)
        expected = [case.loss, singly[1], case.loss]
        found.append(_difference(np.array(together, dtype=np.float32), np.array(expected, dtype=np.float32)))
    return found


def _decode_difference(decoder: OnnxDecoder, theta: FloatVector, case: GoldenCase) -> float:
    """Return the difference of token losses of a batch's first row, read as a device does that continues it.

    The tokens before the first loss are read at once, then some one by one, and the rest at once.
    """
    if not isinstance(case.batch, CompletionBatch):
        return 0.0  # the manifest's task is causal-lm: see golden_cases
    row = case.batch.input_ids[0].tolist()
    wanted = {
        int(position): (int(label), float(loss))
        for position, label, loss in zip(
            case.batch.positions.ravel(), case.batch.labels.ravel(), case.logits.ravel(), strict=True
        )
        if label != IGNORED and position < len(row)
    }
    asked = sorted(wanted)
    ends = [*asked[: _SINGLE_TOKENS + 1], asked[-1]]
    decoder.start(theta)
    found = []
    for end in dict.fromkeys(ends):
        logits = decoder.read(row[decoder.tokens_read : end + 1]).astype(np.float64)
        found.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[wanted[end][0]])
    losses = np.array([wanted[end][1] for end in dict.fromkeys(ends)], dtype=np.float32)
    return _difference(np.array(found, dtype=np.float32), losses)


def _training_differences(
    bundle: Bundle, theta: FloatVector, batch: Batch, engines: Engines
) -> list[tuple[float, float]]:
    """Return the differences of loss and gradients of each level's graph from PyTorch's."""
    manifest, differences = bundle.manifest, []
    training = engines.make_training_engine(bundle)
    for level in training.levels:
        found = np.zeros_like(theta)
        layers = training_layers(level, manifest.model.layers)
        loss = training.gradients(theta, layers, batch, found, whole=kind_of(level) == "top")
        differences.append(_training_difference(bundle, level, loss, found))
    return differences


def _behind_differences(
    bundle: Bundle, theta: FloatVector, batch: Batch, engines: Engines
) -> list[tuple[float, float]]:
    """Return the same of each training graph that begins behind a split, on what the split's front gives."""
    manifest, differences = bundle.manifest, []
    training = engines.make_training_engine(bundle)
    for split in manifest.splits:
        graphs = find_behind(bundle.path, manifest, split, engines.runtime)
        if not graphs:
            continue
        front = BundleFront(bundle, split, engines.opener())
        np.copyto(front.front_workspace, theta[: front.front_workspace.size])
        boundary = front.front_arrays(batch)
        for level, graph in graphs.items():
            found = np.zeros_like(theta)
            layers = training_layers(level, manifest.model.layers)
            loss = training.gradients_behind(graph, theta, layers, batch, boundary, found)
            differences.append(_training_difference(bundle, level, loss, found))
    return differences


def _training_difference(bundle: Bundle, level: Level, loss: float, gradients: FloatVector) -> tuple[float, float]:
    """Return the differences of a level's loss and gradients from the golden ones."""
    golden = bundle.manifest.golden
    expected = map_tensors(bundle.file(golden.file))
    try:
        wanted = np.float32(expected[f"train_{level}.loss"]), expected[f"train_{level}.gradients"]
    except KeyError as error:
        raise BundleError(f"{golden.file} does not hold {error}", "export the bundle again") from error
    return _difference(np.float32(loss), wanted[0]), _difference(gradients, wanted[1])


def check_golden(bundle: Bundle, engines: Engines = ONNX_RUNTIME) -> Parity:
    """Measure parity and compare it with the manifest's tolerance.

    Raises:
        BundleError: a difference is above the tolerance, or not a number.
    """
    parity = measure_parity(bundle, engines)
    tolerance = bundle.manifest.golden.tolerance
    within = max(parity.loss, parity.logits, parity.decode) <= tolerance and parity.gradients <= GRADIENT_TOLERANCE
    if not within:
        raise BundleError(
            f"the bundle's golden vectors differ from PyTorch on {engines.name} by {parity.loss:.1e} (loss), "
            f"{parity.logits:.1e} (logits), {parity.decode:.1e} (with a cache) and {parity.gradients:.1e} (gradients); "
            f"{tolerance:.0e} is allowed, "
            f"{GRADIENT_TOLERANCE:.0e} for gradients",
            f"report this machine and its {engines.runtime} version; do not train on it",
        )
    return parity


def _difference(actual: FloatVector | np.float32, expected: FloatVector | np.float32) -> float:
    """Return the largest difference, relative to the largest expected value above 1; infinity if not finite."""
    if np.shape(actual) != np.shape(expected):
        return float("inf")
    wanted = np.asarray(expected, dtype=np.float64)
    difference = float(np.abs(np.asarray(actual, dtype=np.float64) - wanted).max() / max(1.0, np.abs(wanted).max()))
    return difference if np.isfinite(difference) else float("inf")
