"""Deltas are read from their files one at a time: the same bits as in memory, and memory that is flat in the cohort."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.speed.closing import LAYERS, Start, closing_of, job_of, reported_round
from edge_runtime.bundle.layout import Parameter, total_size
from edge_runtime.protocol.delta import encode_delta, read_delta
from server.compose import enter, open_stores
from server.errors import JobError
from server.job.robust import Robust
from server.rounds.agreement import delta_agreement
from server.rounds.closing import close_round
from server.rounds.delta_bounds import scaled_down
from server.rounds.delta_files import DeltaFiles
from server.rounds.merge import Delta, merge, merged_adapter
from server.storage.queries import agreement_of

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 40_000
BOUNDED = Robust(max_delta_norm_ratio=1.5)


@pytest.mark.parametrize("robust", [None, BOUNDED])
def test_a_round_of_files_has_the_bits_of_one_in_memory(tmp_path: Path, robust: Robust | None) -> None:
    fitted = job_of(SIZE, robust)
    parameters = fitted.manifest.parameters
    stores = open_stores(tmp_path, durable=False)
    with contextlib.closing(stores.ledger):
        chain, _ = enter("fleet", fitted, Start(SIZE), stores)
        opened = reported_round(fitted, stores, chain, 7)
        held = {
            name: Delta(
                float(taken.examples),
                frozenset(taken.layers),
                read_delta(tmp_path / "deltas" / taken.sha256, parameters, taken.layers, LAYERS),
            )
            for name, taken in opened.deltas().items()
        }
        if robust is not None:
            bounded = scaled_down(held, parameters, LAYERS, 1.5)
            assert any(bounded[name] is not held[name] for name in held)
            held = bounded
        expected = merged_adapter(
            chain.theta, None, 0.0, merge(parameters, LAYERS, held, None, by_noise=True)[0]
        ).tobytes()
        closed = close_round(fitted, stores.ledger, chain, stores.uploads.blobs, opened)
        assert stores.blobs.read(closed.result_sha256) == expected
        assert agreement_of(stores.ledger, "job")[0] == delta_agreement(parameters, LAYERS, held)


def test_memory_does_not_grow_with_the_number_of_deltas() -> None:
    a_delta = 4 * 500_000
    few, many = closing_of(5, a_delta // 4), closing_of(60, a_delta // 4)
    assert many.peak_bytes - few.peak_bytes < 2 * a_delta  # 55 deltas more, each of 2 MB
    assert many.peak_bytes < 15 * a_delta


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    sent=st.sets(st.integers(0, 3)),
    ends=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_any_slice_of_a_file_is_that_of_the_delta(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], sent: set[int], ends: tuple[int, int]
) -> None:
    parameters, offset = [], 0
    for index, size in enumerate(sizes):
        parameters.append(Parameter(f"p{index}", [size], index, offset))
        offset += size
    n_layers = len(sizes) - 1
    layers = sorted(layer for layer in sent if layer < n_layers)
    moved = np.arange(1, offset + 1, dtype=np.float32)
    path = tmp_path_factory.mktemp("delta") / "delta"
    path.write_bytes(encode_delta(moved, parameters, layers, n_layers))
    start, stop = sorted(min(end, total_size(parameters)) for end in ends)
    found = DeltaFiles(parameters, n_layers).open(path, layers)
    assert np.array_equal(found[start:stop], read_delta(path, parameters, layers, n_layers)[start:stop])


def test_deltas_that_are_laid_out_alike_share_one_description(tmp_path: Path) -> None:
    parameters = [Parameter("a", [4], 0, 0), Parameter("b", [3], 1, 4), Parameter("head", [2], 2, 7)]
    files = DeltaFiles(parameters, 2)
    opened = []
    for number in range(3):
        path = tmp_path / f"{number}"
        path.write_bytes(encode_delta(np.full(9, number, np.float32), parameters, [0, 1], 2))
        opened.append(files.open(path, [0, 1]))
    assert len(opened[0].pieces) == 1  # its tensors lie one after the other: they are read at once
    assert all(one.pieces is opened[0].pieces for one in opened)


def test_a_file_that_is_cut_or_removed_later_is_named(tmp_path: Path) -> None:
    parameters = [Parameter("a", [400], 0, 0)]
    path = tmp_path / ("ab" * 32)
    path.write_bytes(encode_delta(np.ones(400, np.float32), parameters, [0], 1))
    opened = DeltaFiles(parameters, 1).open(path, [0])
    path.write_bytes(path.read_bytes()[:-8])
    assert opened[0:398].sum() == 398
    with pytest.raises(JobError, match="delta abababababab is not in the state directory, or damaged"):
        opened[0:400]
    path.unlink()
    with pytest.raises(JobError, match="delta abababababab is not in the state directory, or damaged"):
        opened[0:400]
