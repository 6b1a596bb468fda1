"""A frozen front that is not loaded: the frame beside the rows, when that is believed, and when the graph goes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.bundle.layout import front_size
from edge_runtime.data.rows import EncodedRows
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_adapter
from edge_runtime.errors import BundleError
from edge_runtime.forward_only.round import RoundSettings, rows_of_round, train_round
from edge_runtime.fronts.frame import Frame, Part
from edge_runtime.fronts.front_folder import FrontFolder
from edge_runtime.fronts.front_key import CACHE_VERSION, FrontKey, front_key
from edge_runtime.fronts.frozen_engine import FrozenFront
from edge_runtime.fronts.kept_frame import believed_frame, decode_frame, encode_frame, has_rows, keep_frame
from edge_runtime.fronts.row_file import record_bytes
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.forward_only.round import RoundResult
    from edge_runtime.fronts.front_folder import FrontRows

RULE = StepRule(back_perturbations=3, front="frozen", eps=0.01)
ROUND = RoundSettings(7, 0, "pi", RULE, steps=5, batch_size=3, mean_square=None)
RAGGED = [[2, 5, 9, 3], [2, 7, 3], [2, 4, 5, 6, 7, 8, 9, 10, 3], [2, 3], [2, 11, 12, 13, 14, 3]]
KEY = FrontKey(CACHE_VERSION, "a" * 64, 3, "b" * 64, "onnxruntime 1.23, 1 threads", "x86_64", "float32")
DTYPES = st.sampled_from([np.float32, np.int64, np.bool_])


class Device:
    """A device with a frozen front, between two starts of its process."""

    def __init__(self, root: Path, bundle: Bundle, start: str | None, most_bytes: int = 10**8, **engines: Any) -> None:
        made, split = Engines(threads=1, **engines), 1
        self.inner, self.theta = (
            made.make_engine(bundle, split),
            golden_adapter(bundle.initial_adapter(), bundle.manifest.golden),
        )
        self.rows = EncodedRows(RAGGED, [0, 1, 0, 1, 1], bundle.manifest.task.pad_token_id)
        front = self.theta[: front_size(bundle.manifest.parameters, split)]
        folder = FrontFolder(root, most_bytes)
        self.kept = folder.open(front_key(bundle, split, front, made, "float32"), len(self.rows))
        folder.close()
        self.front = FrozenFront(self.inner, front, bundle.manifest.task, self.kept, start=start)

    def fill(self, most_runs: int = 100) -> bool:
        left = iter(range(most_runs))
        return self.front.fill(self.rows, rows_of_round(len(self.rows), ROUND), lambda: next(left, None) is not None)

    def round(self) -> RoundResult:
        result = train_round(self.front, self.theta, self.rows, ROUND)
        assert result is not None
        return result


def without_front(bundle: Bundle) -> None:
    """Remove the graphs that a device of the bundle needs for a front."""
    for graph in bundle.manifest.graphs:
        if graph.kind == "front":
            bundle.file(graph.file).unlink()


@st.composite
def frames(draw: st.DrawFn) -> Frame:
    parts = {}
    for name in draw(st.sets(st.text(min_size=1, max_size=5), max_size=3)):
        dtype, shape = draw(DTYPES), draw(arrays.array_shapes(max_dims=4, max_side=4))
        full, short = (draw(arrays.arrays(dtype, shape)) for _ in range(2))
        axes = draw(st.sets(st.integers(0, len(shape) - 1)).map(sorted).map(tuple))
        parts[name] = Part(full, short, axes, draw(st.booleans()), draw(st.booleans()))
    return Frame(parts)


@settings(deadline=None)
@given(frame=frames())
def test_a_frame_comes_back_as_it_was(frame: Frame) -> None:
    found = decode_frame(encode_frame(frame))
    assert found is not None
    assert encode_frame(found) == encode_frame(frame)
    for name, part in frame.parts.items():
        again = found.parts[name]
        assert (again.full.dtype, again.full.shape) == (part.full.dtype, part.full.shape)
        assert again.full.tobytes() + again.short.tobytes() == part.full.tobytes() + part.short.tobytes()
        assert (again.token_axes, again.has_batch, again.is_masked) == (part.token_axes, part.has_batch, part.is_masked)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_frame_are_none(data: bytes) -> None:
    assert decode_frame(data) is None


def opened(root: Path, most_bytes: int = 10**6, key: FrontKey = KEY) -> FrontRows:
    folder = FrontFolder(root, most_bytes)
    rows = folder.open(key, 4)
    folder.close()
    assert rows is not None
    return rows


FRAME = Frame({"mask": Part(np.ones((1, 1, 9, 9), np.float32), np.zeros((1, 1, 9, 9), np.float32), (2, 3), True)})


def test_a_frame_is_believed_at_the_start_that_it_was_made_at(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    assert believed_frame(rows, "monday") is None
    keep_frame(rows, FRAME, "monday")
    size = rows.file.size
    keep_frame(rows, FRAME, "monday")
    assert rows.file.size == size  # what is there is not written again
    assert believed_frame(rows, "tuesday") is None
    assert believed_frame(rows, None) is None
    rows.close()
    again = opened(tmp_path)
    found = believed_frame(again, "monday")
    assert found is not None
    assert encode_frame(found) == encode_frame(FRAME)
    assert not has_rows(again)
    keep_frame(again, FRAME, "tuesday")
    assert record_bytes(1) <= again.file.size - size < 3 * record_bytes(1)  # the new start alone
    assert believed_frame(again, "monday") is None
    again.clear()
    assert believed_frame(again, "tuesday") is None


def test_what_is_of_no_known_start_is_not_written(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    keep_frame(rows, FRAME, None)
    assert not rows.file.rows


@settings(deadline=None, max_examples=100)
@given(where=st.floats(0, 1), is_cut=st.booleans())
def test_a_damaged_file_has_the_frame_or_none(where: float, is_cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = opened(Path(folder))
        keep_frame(rows, FRAME, "monday")
        rows.close()
        data = bytearray(rows.file.path.read_bytes())
        at = min(int(where * len(data)), len(data) - 1)
        if is_cut:
            del data[at:]
        else:
            data[at] ^= 1
        rows.file.path.write_bytes(data)
        found = believed_frame(opened(Path(folder)), "monday")
        assert found is None or encode_frame(found) == encode_frame(FRAME)


def test_a_frame_stays_when_rows_are_thrown_out(tmp_path: Path) -> None:
    rows = opened(tmp_path, 30_000)
    keep_frame(rows, FRAME, "monday")
    for index in range(200):
        name = index.to_bytes(32, "little")
        assert rows.find(name) is None
        rows.add(name, 5, 0, bytes(1000))
    assert 0 < len(rows.file.rows) < 30
    assert believed_frame(rows, "monday") is not None


def test_a_device_whose_rows_are_kept_never_loads_the_front(tmp_path: Path, bundle_copy: Bundle) -> None:
    """The front's graphs are not there any more: nothing that would load them goes unnoticed."""
    plain = Device(tmp_path / "none", bundle_copy, "monday", most_bytes=0).round()
    first = Device(tmp_path / "kept", bundle_copy, "monday")
    assert first.fill()
    assert first.round().scalars.tobytes() == plain.scalars.tobytes()
    without_front(bundle_copy)
    again = Device(tmp_path / "kept", bundle_copy, "monday")
    assert again.fill()
    assert again.round().scalars.tobytes() == plain.scalars.tobytes()
    assert (again.front.counts.hits, again.front.counts.misses, again.front.counts.runs) == (15, 0, 0)
    for start in ("tuesday", None):
        with pytest.raises(BundleError, match="cannot load"):
            Device(tmp_path / "kept", bundle_copy, start)


def test_after_another_start_the_first_row_is_compared(tmp_path: Path, tiny_bundle: Bundle) -> None:
    first = Device(tmp_path, tiny_bundle, "monday")
    assert first.fill()
    plain = first.round()
    again = Device(tmp_path, tiny_bundle, "tuesday")
    assert again.fill()
    assert again.front.counts.runs == 1
    assert again.round().scalars.tobytes() == plain.scalars.tobytes()
    later = Device(tmp_path, tiny_bundle, "tuesday")
    assert later.fill()
    assert later.round().scalars.tobytes() == plain.scalars.tobytes()
    assert later.front.counts.runs == 0


def test_rows_of_another_processor_are_found_out_before_the_round(tmp_path: Path, tiny_bundle: Bundle) -> None:
    plain = Device(tmp_path / "plain", tiny_bundle, "monday").round()
    other = Device(tmp_path / "moved", tiny_bundle, "monday")
    run = other.inner.front_arrays

    def elsewhere(batch: Any) -> dict[str, Any]:
        return {n: np.nextafter(v, np.float32(9)) if v.dtype == np.float32 else v for n, v in run(batch).items()}

    other.inner.front_arrays = elsewhere  # type: ignore[method-assign]
    assert other.fill()
    for misses in (5, 0):
        moved = Device(tmp_path / "moved", tiny_bundle, "tuesday")
        assert moved.fill()
        assert moved.round().scalars.tobytes() == plain.scalars.tobytes()
        assert moved.front.counts.misses == misses


def test_the_front_is_let_go_of_before_the_first_step(tmp_path: Path, tiny_bundle: Bundle) -> None:
    device = Device(tmp_path, tiny_bundle, "monday")
    assert device.fill()
    assert not device.inner.close_front()  # it is closed
    assert device.front.counts.runs == 5
    device.round()
    assert not device.inner.close_front()
    assert (device.front.counts.hits, device.front.counts.misses) == (10, 5)


def test_where_not_all_rows_fit_the_front_stays(tmp_path: Path, tiny_bundle: Bundle) -> None:
    plain = Device(tmp_path / "plain", tiny_bundle, "monday").round()
    whole = Device(tmp_path / "whole", tiny_bundle, "monday")
    assert whole.fill()
    assert whole.kept is not None
    device = Device(tmp_path / "part", tiny_bundle, "monday", most_bytes=whole.kept.file.size - 1)
    for _ in range(2):
        assert device.fill()
        assert device.round().scalars.tobytes() == plain.scalars.tobytes()
        assert device.inner.close_front()  # it was open
    assert device.front.counts.misses > 5
    assert device.front.counts.hits > 5


def test_a_round_that_is_abandoned_keeps_what_was_run(tmp_path: Path, tiny_bundle: Bundle) -> None:
    device = Device(tmp_path, tiny_bundle, "monday")
    assert not device.fill(most_runs=2)
    assert device.fill(most_runs=3)


@pytest.mark.slow
def test_executorch_lets_go_of_its_front_too(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = tiny_export("bert", runtimes=("onnxruntime", "executorch"))
    plain = Device(tmp_path / "none", bundle, "monday", most_bytes=0, runtime="executorch").round()
    for misses in (5, 0):
        device = Device(tmp_path / "kept", bundle, "monday", runtime="executorch")
        assert device.fill()
        assert not device.inner.close_front()
        assert device.round().scalars.tobytes() == plain.scalars.tobytes()
        assert device.front.counts.misses == misses


def test_the_key_of_the_file_keeps_frames_apart(tmp_path: Path) -> None:
    rows = opened(tmp_path)
    keep_frame(rows, FRAME, "monday")
    rows.close()
    other = opened(tmp_path, key=msgspec.structs.replace(KEY, front_sha256="c" * 64))
    assert believed_frame(other, "monday") is None
