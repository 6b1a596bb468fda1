"""The deltas of a round as their files: one is read at a time, so that memory does not grow with the number of devices.

Whoever averages, bounds or compares deltas asks for the parameters that it works on, device after device. It gets the
bits that a delta held in memory would give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edge_runtime.errors import BundleError, system_error
from edge_runtime.files.tensor_file import tensor_offsets
from edge_runtime.protocol.delta import read_delta, sent_parameters
from server.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.values import FloatVector

_BYTES = np.dtype("<f4").itemsize


class Movement(Protocol):
    """What one device's delta adds to each parameter; an array is one."""

    def __getitem__(self, where: slice, /) -> FloatVector:
        """Return the movement of some parameters, float32, (parameters of the slice,)."""


@dataclass(frozen=True)
class _Piece:
    """Parameters that lie one after the other in a file, too.

    Attributes:
        start: index of the first parameter.
        stop: index behind the last.
        begins_at: where they begin in the file, in bytes.
    """

    start: int
    stop: int
    begins_at: int


@dataclass(frozen=True)
class DeltaFile:
    """A delta that stays in its file; ``delta[start:stop]`` reads these parameters.

    Attributes:
        path: the file.
        pieces: where its parameters are, in their order; the others are 0.
    """

    path: Path
    pieces: tuple[_Piece, ...]

    def __getitem__(self, where: slice, /) -> FloatVector:
        """Return the movement of some parameters; ``where`` has a start and a stop within the layout.

        Raises:
            JobError: the file was cut or removed since it was opened.
            StorageError: it cannot be read.
        """
        movement: FloatVector = np.zeros(where.stop - where.start, dtype=np.float32)
        wanted = [piece for piece in self.pieces if piece.start < where.stop and where.start < piece.stop]
        if not wanted:
            return movement
        try:
            with self.path.open("rb", buffering=0) as file:
                for piece in wanted:
                    start, stop = max(piece.start, where.start), min(piece.stop, where.stop)
                    file.seek(piece.begins_at + _BYTES * (start - piece.start))
                    part = movement[start - where.start : stop - where.start]
                    if file.readinto(part.data.cast("B")) != part.nbytes:
                        raise lost_delta(self.path.name)
        except FileNotFoundError as error:
            raise lost_delta(self.path.name) from error
        except OSError as error:
            raise system_error(error) from error
        return movement


@dataclass(frozen=True)
class Scaled:
    """A movement times a factor."""

    movement: Movement
    factor: np.float32

    def __getitem__(self, where: slice, /) -> FloatVector:
        """Return the movement of some parameters; see Movement."""
        scaled: FloatVector = self.movement[where] * self.factor
        return scaled


class DeltaFiles:
    """Opens the deltas of a round. Deltas whose files are laid out alike share one description.

    Args:
        parameters: the layout.
        n_layers: L.
    """

    def __init__(self, parameters: Sequence[Parameter], n_layers: int) -> None:
        self._parameters, self._n_layers = parameters, n_layers
        self._known: dict[tuple[_Piece, ...], tuple[_Piece, ...]] = {}

    def open(self, path: Path, layers: Collection[int]) -> DeltaFile:
        """Check a delta's tensors, and return it; nothing of it stays in memory.

        Args:
            path: the file.
            layers: the layers that it was sent with.

        Raises:
            ProtocolError: see read_delta.
        """
        read_delta(path, self._parameters, layers, self._n_layers)
        try:
            offsets = tensor_offsets(path)
        except BundleError as error:
            raise lost_delta(path.name) from error
        pieces: list[_Piece] = []
        for p in sorted(sent_parameters(self._parameters, layers, self._n_layers), key=lambda p: p.offset):
            last = pieces[-1] if pieces else None
            if last is not None and last.stop == p.offset and _end(last) == offsets[p.name]:
                pieces[-1] = _Piece(last.start, p.stop, last.begins_at)
            else:
                pieces.append(_Piece(p.offset, p.stop, offsets[p.name]))
        laid_out = tuple(pieces)
        return DeltaFile(path, self._known.setdefault(laid_out, laid_out))


def _end(piece: _Piece) -> int:
    return piece.begins_at + _BYTES * (piece.stop - piece.start)


def lost_delta(sha256: str) -> JobError:
    """Return the error of a delta that was taken and whose file is gone or not whole."""
    return JobError(
        f"delta {sha256[:12]} is not in the state directory, or damaged",
        "restore the folder deltas of --state-dir from a backup",
    )
