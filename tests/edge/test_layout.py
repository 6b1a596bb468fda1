"""The flat vector: order, blocks, bytes, hash."""

from __future__ import annotations

import hashlib
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.adapter import adapter_sha256, check_finite, map_adapter
from edge_runtime.bundle.layout import Parameter, check_layout, front_size, total_size, views
from edge_runtime.errors import BundleError
from edge_runtime.values import FloatVector


def make_layout(shapes: list[list[int]], layers: list[int]) -> list[Parameter]:
    parameters: list[Parameter] = []
    for index, (shape, layer) in enumerate(zip(shapes, sorted(layers), strict=True)):
        parameters.append(Parameter(f"p{index}", shape, layer, total_size(parameters)))
    return parameters


layouts = st.integers(1, 8).flatmap(
    lambda n: st.builds(
        make_layout,
        st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
    )
)


@given(layout=layouts, split=st.integers(0, 7))
def test_every_split_cuts_the_vector_in_two(layout: list[Parameter], split: int) -> None:
    check_layout(layout)
    cut = front_size(layout, split)
    for parameter in layout:
        assert (parameter.stop <= cut) == (parameter.layer < split)
    assert total_size(layout) == sum(math.prod(p.shape) for p in layout)


def mapped(data: bytes, layout: list[Parameter]) -> FloatVector:
    """The adapter in a file of these bytes, checked."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter.bin"
        path.write_bytes(data)
        theta = map_adapter(path, total_size(layout))
    check_finite(theta)
    return theta


@given(layout=layouts)
def test_bytes_round_trip_and_name_the_adapter(layout: list[Parameter]) -> None:
    flat = np.arange(total_size(layout), dtype=np.float32) / 3
    data = flat.tobytes()
    assert mapped(data, layout).tobytes() == flat.tobytes()
    assert adapter_sha256(flat) == hashlib.sha256(data).hexdigest()
    pieces = views(flat, layout)
    assert b"".join(pieces[p.name].tobytes() for p in layout) == data
    pieces["p0"][...] = -1.0
    assert flat[0] == -1.0


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ([], "empty"),
        ([Parameter("a", [2], 0, 1)], "offset"),
        ([Parameter("a", [2], 0, 0), Parameter("b", [2], 0, 3)], "offset"),
        ([Parameter("a", [2], 0, 0), Parameter("a", [2], 0, 2)], "twice"),
        ([Parameter("a", [2], 1, 0), Parameter("b", [2], 0, 2)], "depth order"),
        ([Parameter("a", [0], 0, 0)], "shape"),
    ],
)
def test_broken_layouts_are_refused(broken: list[Parameter], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        check_layout(broken)


def test_wrong_adapters_are_refused() -> None:
    layout = make_layout([[2, 2]], [0])
    with pytest.raises(BundleError, match="bytes"):
        mapped(b"\0" * 15, layout)
    with pytest.raises(BundleError, match="not finite"):
        mapped(np.array([0, np.nan, 0, 0], np.float32).tobytes(), layout)
    with pytest.raises(BundleError, match="shape"):
        views(np.zeros(5, np.float32), layout)
