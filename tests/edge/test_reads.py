"""The parts of a block that a run reads."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.layout import Parameter
from edge_runtime.bundle.manifest import GraphInput
from edge_runtime.data.batch import Batch
from edge_runtime.engines.reads import read_slices, rows_read

TOKENS = st.lists(st.integers(0, 9), min_size=1, max_size=12)


def batch_of(tokens: list[int]) -> Batch:
    ids = np.array([tokens], dtype=np.int64)
    return Batch(ids, np.ones_like(ids), np.zeros(1, dtype=np.int64))


@given(TOKENS, st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(0, 50))
def test_all_rows_that_are_read_and_no_others(tokens: list[int], words: list[int], start: int) -> None:
    parameters = [
        Parameter("embedding", [10, 3], -1, start),
        Parameter("norm", [5], 0, start + 30),
        Parameter("decoder", [4, 2], 1, start + 35),
    ]
    found = read_slices(parameters, {"embedding": "input_ids", "decoder": words}, batch_of(tokens))
    marks = np.zeros(43, dtype=int)
    for part in found:
        marks[part] += 1
    expected = np.zeros(43, dtype=int)
    expected[:30].reshape(10, 3)[tokens] = 1
    expected[30:35] = 1
    expected[35:].reshape(4, 2)[words] = 1
    assert np.array_equal(marks, expected)
    assert all(one.stop < other.start for one, other in itertools.pairwise(found))


def test_an_empty_block_has_nothing_to_read() -> None:
    assert read_slices([], {}, batch_of([1])) == []


def test_only_trainable_tensors_that_are_read_by_rows_count() -> None:
    inputs = [
        GraphInput("w0", "float32", [10, 3], "trainable", "embedding", rows="input_ids"),
        GraphInput("w1", "float32", [5], "trainable", "norm"),
        GraphInput("input_ids", "int64", ["batch", "tokens"], "batch", "input_ids"),
    ]
    assert rows_read(inputs) == {"embedding": "input_ids"}
