"""Values that one process of this machine hands to another: pickled, their large arrays in memory that both map."""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
from dataclasses import dataclass
from multiprocessing.reduction import recv_handle, send_handle
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_LARGE = 1 << 16
"""Bytes from which an array is not sent through the pipe."""
_FLAGS = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages at once: one by one they cost twice as much
_ALIGNED = 64
"""Every array begins at a multiple of it."""


@dataclass(frozen=True)
class Parcel:
    """A value that is ready to be sent.

    Attributes:
        body: the value, pickled without its large arrays.
        sizes: bytes of each of them.
        memory: their bytes; it has no name, and goes with the last process that has it open. None: there are none.
    """

    body: bytes
    sizes: tuple[int, ...]
    memory: IO[bytes] | None


def pack(value: object) -> Parcel:
    """Pack a value; later changes of it are not sent.

    Raises:
        OSError: there is too little memory.
    """
    large: list[memoryview] = []

    def stays(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LARGE:
            return True
        large.append(raw)
        return False

    body = pickle.dumps(value, protocol=5, buffer_callback=stays)
    if not large:
        return Parcel(body, (), None)
    memory = _new_memory()
    for raw in large:
        memory.write(raw)
        memory.write(bytes(-raw.nbytes % _ALIGNED))
    memory.flush()
    return Parcel(body, tuple(raw.nbytes for raw in large), memory)


def send(pipe: Connection, parcel: Parcel) -> None:
    """Send a parcel, once.

    Raises:
        OSError: the other process has ended.
    """
    pipe.send_bytes(pickle.dumps((parcel.body, parcel.sizes)))
    if parcel.memory is not None:
        with parcel.memory as memory:
            send_handle(pipe, memory.fileno(), None)


def receive(pipe: Connection) -> Any:  # noqa: ANN401 of the sender
    """Wait for a parcel from a process that this one has started, or was started by; its large arrays are read-only.

    Raises:
        EOFError: the other process has ended.
    """
    try:
        body, sizes = pickle.loads(pipe.recv_bytes())  # noqa: S301 see above
        if not sizes:
            return pickle.loads(body)  # noqa: S301
        with open(recv_handle(pipe), "rb") as memory:  # noqa: PTH123 a descriptor
            whole = memoryview(mmap.mmap(memory.fileno(), 0, _FLAGS, mmap.PROT_READ))
    except (OSError, RuntimeError) as error:  # a pipe that ends before the descriptor is there gives a RuntimeError
        raise EOFError(str(error)) from error
    buffers, at = [], 0
    for size in sizes:
        buffers.append(whole[at : at + size])
        at += size + -size % _ALIGNED
    return pickle.loads(body, buffers=buffers)  # noqa: S301


def _new_memory() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("covey"), "w+b")  # noqa: PTH123 a descriptor; the sender closes it
    return tempfile.TemporaryFile()
