"""Values between a command and its driver: they come as they were sent, and their memory goes with them."""

from __future__ import annotations

import os
import pickle
import threading
from multiprocessing import Pipe
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_runtime.forward_only.slices import Slice
from server.ray_work.parcels import pack, receive, send

SHAPES = st.lists(st.integers(0, 300), min_size=1, max_size=3).filter(lambda shape: np.prod(shape) < 200_000)


def through_a_pipe(value: object) -> Any:
    here, there = Pipe()
    with here, there:
        sender = threading.Thread(target=send, args=(here, pack(value)))
        sender.start()
        received = receive(there)
        sender.join()
    return received


@given(
    st.lists(SHAPES.flatmap(lambda shape: arrays.arrays(np.float32, tuple(shape), elements=st.floats(width=32)))),
    st.dictionaries(st.text(), st.integers() | st.binary()),
)
def test_what_is_sent_is_what_comes(found: list[Any], more: dict[str, object]) -> None:
    large = np.arange(1 << 16, dtype=np.int16)[:: 1 if len(found) % 2 else 2]
    got, got_large, got_more = through_a_pipe((found, large, more))
    assert [one.tobytes() for one in got] == [one.tobytes() for one in found]
    assert [one.shape for one in got] == [one.shape for one in found]
    assert np.array_equal(got_large, large)
    assert got_more == more


def test_large_arrays_do_not_pass_the_pipe_and_cannot_be_changed() -> None:
    now = np.arange(1 << 20, dtype=np.float32)
    part = Slice(7, now, None, now + 1)
    parcel = pack(part)
    assert len(parcel.body) < 1000
    assert parcel.sizes == (now.nbytes, now.nbytes)
    now[:] = 0  # what was packed stays
    here, there = Pipe()
    with here, there:
        send(here, parcel)
        received: Slice = receive(there)
    assert received.start == 7
    assert received.now[-1] == (1 << 20) - 1
    assert received.moment is not None
    assert received.moment[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        received.now[0] = 1


def test_no_descriptor_and_no_memory_stays() -> None:
    process = psutil.Process()
    before = process.num_fds()
    for _ in range(50):
        through_a_pipe(np.zeros(1 << 18))
    pack(np.zeros(1 << 18))  # never sent
    assert process.num_fds() <= before


@pytest.mark.parametrize("cut", ["at once", "in the body", "before the memory"])
def test_a_sender_that_dies_is_an_end(cut: str) -> None:
    here, there = Pipe()
    with there:
        with here:
            if cut == "in the body":
                os.write(here.fileno(), b"\0\0\1\0part")
            elif cut == "before the memory":
                parcel = pack(np.zeros(1 << 20))
                here.send_bytes(pickle.dumps((parcel.body, parcel.sizes)))
        with pytest.raises(EOFError):
            receive(there)
