"""Frozen fronts on real graphs: the same scalars with kept activations and without, never those of other fronts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from edge_runtime.bundle.layout import front_size
from edge_runtime.data.batch import pad, pad_completions
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter, golden_cases
from edge_runtime.forward_only.round import RoundSettings, train_round
from edge_runtime.fronts.front_folder import FrontFolder
from edge_runtime.fronts.front_key import front_key
from edge_runtime.fronts.frozen_engine import FrozenFront
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.fronts.front_key import Precision
    from edge_runtime.values import FloatVector

ENGINES = Engines("onnxruntime", threads=1)
RULE = StepRule(back_perturbations=3, front="frozen", eps=0.01)
RAGGED = [[2, 5, 9, 3], [2, 7, 3], [2, 4, 5, 6, 7, 8, 9, 10, 3], [2, 3], [2, 11, 12, 13, 14, 3]]


def start_of(bundle: Bundle) -> FloatVector:
    return golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)


class Device:
    """A device's frozen front: made anew, as after a restart, whenever ``front`` is called."""

    def __init__(self, root: Path, bundle: Bundle, split: int = 1, engines: Engines = ENGINES) -> None:
        self.bundle, self.split, self.root, self.engines = bundle, split, root, engines
        self.inner = engines.make_engine(bundle, split)
        self.theta = start_of(bundle)
        self.size = front_size(bundle.manifest.parameters, split)
        self.rows = EncodedRows(RAGGED, [0, 1, 0, 1, 1], bundle.manifest.task.pad_token_id)

    def front(self, precision: Precision = "float32", most_bytes: int = 10**8) -> FrozenFront:
        front = self.theta[: self.size]
        key = front_key(self.bundle, self.split, front, self.engines, precision)
        folder = FrontFolder(self.root, most_bytes)
        rows = folder.open(key, len(self.rows))
        folder.close()
        return FrozenFront(self.inner, front, self.bundle.manifest.task, rows, precision)

    def round(self, front: FrozenFront, rows: EncodedRows | None = None, **changes: Any) -> RoundResult:
        settings = RoundSettings(7, 0, "pi", RULE, steps=5, batch_size=3, mean_square=None)
        settings = RoundSettings(**(settings.__dict__ | changes))
        result = train_round(front, self.theta, rows or self.rows, settings)
        assert result is not None
        return result


OTHERS = ["roberta", "deberta", "distilbert", "mpnet", "opt", "qwen2-sliding", "qwen3"]
KINDS = ["bert", "llama", *[pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_put_together_is_what_the_front_gives(
    tiny_export: Callable[..., Bundle], tmp_path: Path, kind: str
) -> None:
    """Rows of many lengths in one batch, of every architecture: the loss is that of the front on the padded batch."""
    task = "causal-lm" if kind in ("llama", "qwen2-sliding") else "classify-head"
    bundle = tiny_export(kind, **({"task": "classify-prompt"} if kind in ("opt", "qwen3") else {"task": task}))
    for split in (1, 2):
        device = Device(tmp_path / str(split), bundle, split)
        front, inner, size = device.front(), device.inner, device.size
        pad_id = bundle.manifest.task.pad_token_id
        batches: list[Any] = [case.batch for case in golden_cases(bundle)]
        if task == "causal-lm":
            batches.append(pad_completions([[3, 4], *RAGGED[:3]], [1, 2, 1, 4], pad_id))
        else:
            batches.append(pad(RAGGED, [0, 1, 1, 0, 1], pad_id))
        for batch in [*batches, *batches]:
            inner.front_workspace[:], inner.back_workspace[:] = device.theta[:size], device.theta[size:]
            expected = inner.back(inner.front(batch), batch)
            assert front.back(front.front(batch), batch) == pytest.approx(expected, abs=1e-5)
        assert front.counts.hits >= front.counts.misses > 0
        assert front.counts.runs < 10 + front.counts.misses


def test_scalars_are_the_same_bits_with_kept_activations_without_and_after_a_restart(
    tmp_path: Path, tiny_bundle: Bundle
) -> None:
    device = Device(tmp_path, tiny_bundle)
    nowhere = device.front(most_bytes=0)
    plain = device.round(nowhere)
    assert nowhere.counts.hits == 0
    first, again = device.front(), None
    cold, warm = device.round(first), device.round(first)
    assert (first.counts.hits, first.counts.misses) == (25, 5)  # two rounds of 15 rows, of 5 that there are
    again = device.front()
    restarted = device.round(again)
    assert (again.counts.hits, again.counts.misses) == (15, 0)
    for result in (cold, warm, restarted):
        assert result.scalars.tobytes() == plain.scalars.tobytes()
        assert result.theta is not None
        assert plain.theta is not None
        assert result.theta.tobytes() == plain.theta.tobytes()
        assert result.theta[: device.size].tobytes() == device.theta[: device.size].tobytes()


QUANTISED = [
    ("bert", "int4", "float32"),
    *[
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (("llama", "int8", "float32"), ("bert", "int8", "int8"), ("llama", "int4", "int8"))
    ],
]


@pytest.mark.parametrize(("kind", "base", "products"), QUANTISED)
def test_a_front_of_blocks_is_kept_like_any_other(
    tiny_export: Callable[..., Bundle],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    base: str,
    products: str,
) -> None:
    """A row alone is the row in a padded batch; int8 products may round it otherwise on a machine, and the log says so.

    An activation near the middle between two of the 8-bit steps can go either way with the last bits of a product.
    """
    task = "causal-lm" if kind == "llama" else "classify-head"
    device = Device(tmp_path, tiny_export(kind, task=task, base=base, products=products))
    plain_front, kept = device.front(most_bytes=0), device.front()
    assert kept.keeps_rows or (products == "int8" and "cannot be kept" in caplog.text)
    inner, size, pad_id = device.inner, device.size, device.rows.pad_token_id
    labelled = pad(RAGGED, [0, 1, 1, 0, 1], pad_id)
    batch = labelled if task == "classify-head" else pad_completions([[3, 4], *RAGGED[:3]], [1, 2, 1, 4], pad_id)
    inner.front_workspace[:], inner.back_workspace[:] = device.theta[:size], device.theta[size:]
    expected = inner.back(inner.front(batch), batch)
    for front in (kept, kept, plain_front):
        found = front.back(front.front(batch), batch)
        assert found == pytest.approx(expected, abs=1e-5 if products == "float32" else 1e-3)
    assert (kept.counts.hits, kept.counts.misses) == ((batch.rows,) * 2 if kept.keeps_rows else (0, 2 * batch.rows))
    if task == "classify-head":  # the device's own rows are labelled ones
        plain = device.round(plain_front).scalars.tobytes()
        assert [device.round(front).scalars.tobytes() for front in (kept, device.front())] == [plain, plain]


def test_another_order_of_the_rows_costs_nothing_and_changes_nothing(tmp_path: Path, tiny_bundle: Bundle) -> None:
    device = Device(tmp_path, tiny_bundle)
    device.round(device.front())
    turned = EncodedRows(RAGGED[::-1], [1, 1, 0, 1, 0], device.rows.pad_token_id)
    kept = device.front()
    assert (
        device.round(kept, turned).scalars.tobytes()
        == device.round(device.front(most_bytes=0), turned).scalars.tobytes()
    )
    assert kept.counts.misses == 0


def test_float16_is_bounded_and_does_not_depend_on_what_was_kept(tmp_path: Path, tiny_bundle: Bundle) -> None:
    device = Device(tmp_path, tiny_bundle)
    exact = device.round(device.front(most_bytes=0)).scalars
    cold = device.round(device.front("float16")).scalars
    warm_front = device.front("float16")
    warm = device.round(warm_front).scalars
    assert warm_front.counts.misses == 0
    assert warm.tobytes() == cold.tobytes() == device.round(device.front("float16", most_bytes=0)).scalars.tobytes()
    assert warm.tobytes() != exact.tobytes()
    assert np.abs(warm - exact).max() < 2e-3 * np.abs(exact).max()
    file = next(tmp_path.glob("*.front"))
    half = file.stat().st_size
    device.round(device.front())
    assert half < 0.75 * file.stat().st_size  # with headers and filling; the activations are half as large


def test_what_float16_cannot_hold_stays_float32(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """A front whose activations are out of float16's range: scalars are those of float32, kept or not."""
    device = Device(tmp_path, tiny_bundle)
    arrays = device.inner.front_arrays

    def large(batch: Any) -> dict[str, Any]:
        return {name: v * np.float32(1e6) if v.dtype == np.float32 else v for name, v in arrays(batch).items()}

    device.inner.front_arrays = large  # type: ignore[method-assign]
    exact = device.round(device.front(most_bytes=0)).scalars
    for _ in range(2):
        assert device.round(device.front("float16")).scalars.tobytes() == exact.tobytes()


@pytest.mark.parametrize("change", ["front", "split", "threads", "bundle"])
def test_activations_of_another_front_are_not_used(
    tmp_path: Path, tiny_bundle: Bundle, tiny_export: Callable[..., Bundle], change: str
) -> None:
    device = Device(tmp_path, tiny_bundle)
    device.round(device.front())
    other = Device(tmp_path, tiny_bundle)
    if change == "front":
        other.theta[0] += 0.5
    elif change == "split":
        other = Device(tmp_path, tiny_bundle, split=2)
    elif change == "threads":
        other = Device(tmp_path, tiny_bundle, engines=Engines("onnxruntime", threads=2))
    else:
        other = Device(tmp_path, tiny_export("roberta"))
    kept = other.front()
    found = other.round(kept)
    assert kept.counts.misses == 5
    assert found.scalars.tobytes() == other.round(other.front(most_bytes=0)).scalars.tobytes()


def test_a_file_from_another_machine_is_found_out_by_its_first_row(
    tmp_path: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """The key is the same, the last bits are not: as on a card that was moved to another processor."""
    device = Device(tmp_path, tiny_bundle)
    plain = device.round(device.front(most_bytes=0)).scalars
    arrays = device.inner.front_arrays

    def elsewhere(batch: Any) -> dict[str, Any]:
        found = arrays(batch)
        return {n: np.nextafter(v, np.float32(9)) if v.dtype == np.float32 else v for n, v in found.items()}

    device.inner.front_arrays = elsewhere  # type: ignore[method-assign]
    device.round(device.front())
    device.inner.front_arrays = arrays  # type: ignore[method-assign]
    kept = device.front()
    with caplog.at_level(logging.INFO):
        assert device.round(kept).scalars.tobytes() == plain.tobytes()
    assert "are not what the front gives here" in caplog.text
    assert kept.counts.misses == 5


@pytest.mark.parametrize("damage", ["cut", "payload", "empty"])
def test_a_damaged_file_gives_the_same_scalars(tmp_path: Path, tiny_bundle: Bundle, damage: str) -> None:
    device = Device(tmp_path, tiny_bundle)
    plain = device.round(device.front()).scalars
    path = next(tmp_path.glob("*.front"))
    data = bytearray(path.read_bytes())
    if damage == "payload":
        data[-100] ^= 4
    path.write_bytes(b"" if damage == "empty" else data[:-90] if damage == "cut" else data)
    kept = device.front()
    assert device.round(kept).scalars.tobytes() == plain.tobytes()
    assert kept.counts.misses == (5 if damage == "empty" else 1)


def test_a_front_that_cannot_be_put_together_is_run(
    tmp_path: Path, tiny_bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    """A mask that depends on the batch in a way that is not known: no activation is kept, the scalars are right."""
    device = Device(tmp_path, tiny_bundle)
    arrays = device.inner.front_arrays

    def strange(batch: Any) -> dict[str, Any]:
        return {n: v if v.dtype == np.float32 else v ^ (len(v) == 2) for n, v in arrays(batch).items()}

    plain = device.front(most_bytes=0)
    batch = device.rows.batch([0, 1, 2])
    expected = plain.back(plain.front(batch), batch)
    device.inner.front_arrays = strange  # type: ignore[method-assign]
    with caplog.at_level(logging.WARNING):
        kept = device.front()
    assert "cannot be kept" in caplog.text
    kept.back_workspace[:] = device.theta[device.size :]
    plain.back_workspace[:] = device.theta[device.size :]
    assert kept.back(kept.front(batch), batch) == pytest.approx(plain.back(plain.front(batch), batch), abs=1e-5)
    assert expected is not None


def test_the_key_names_everything(tiny_bundle: Bundle) -> None:
    theta = start_of(tiny_bundle)
    key = front_key(tiny_bundle, 1, theta[:4], ENGINES, "float32")
    assert key == front_key(tiny_bundle, 1, theta[:4].copy(), ENGINES, "float32")
    assert key.encode() == msgspec.json.encode(key)
    assert "onnxruntime" in key.engine
    assert key.bundle_sha256 == tiny_bundle.sha256


@pytest.mark.slow
def test_each_runtime_keeps_its_own_activations(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """ExecuTorch puts batches together as ONNX Runtime does, and neither uses what the other kept."""
    bundle = tiny_export("bert", runtimes=("onnxruntime", "executorch"))
    for runtime in ("executorch", "onnxruntime"):
        device = Device(tmp_path, bundle, engines=Engines(runtime, threads=1))  # type: ignore[arg-type]
        plain = device.round(device.front(most_bytes=0)).scalars
        kept = device.front()
        for misses in (5, 5):
            assert device.round(kept).scalars.tobytes() == plain.tobytes()
            assert kept.counts.misses == misses
