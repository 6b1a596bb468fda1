"""How well the device's own model did on held-out rows, one measurement a model, in ``accuracies.json``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, cast

from edge_runtime.errors import StorageError
from edge_runtime.files.aside import set_aside
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.checked import decode_checked, encode_checked
from edge_runtime.files.document import read_document
from edge_runtime.protocol.held_out import HeldOut, Share
from edge_runtime.values import Count, Sha256, Strict

if TYPE_CHECKING:
    from pathlib import Path

ACCURACIES_FILE = "accuracies.json"
KEPT = 100
"""Measurements that are kept; the best is the best of these."""
_LOG = logging.getLogger(__name__)


class Measured(Strict, frozen=True):
    """One measurement.

    Attributes:
        at_s: when it ended, in seconds since 1970.
        bundle_sha256: the model's bundle.
        adapter_sha256: its adapter; None: the bundle's own.
        personal_sha256: the device's own layers; None: there were none.
        rows_sha256: the file of held-out rows: only measurements on the same one can be compared.
        rows: number of rows.
        accuracy: share of right answers; causal-lm: of right tokens.
    """

    at_s: float
    bundle_sha256: Sha256
    adapter_sha256: Sha256 | None
    personal_sha256: Sha256 | None
    rows_sha256: Sha256
    rows: Count
    accuracy: Share


class Accuracies(Strict, frozen=True):
    """The measurements of a device, the newest last."""

    v: Literal[1] = 1
    measured: tuple[Measured, ...] = ()


class AccuraciesDamagedError(StorageError):
    """The file of the measurements says nothing."""


def read_accuracies(root: Path) -> Accuracies:
    """Return the measurements in a state directory; none where there is no file.

    Raises:
        AccuraciesDamagedError: it is damaged.
        StorageError: it cannot be read.
    """
    path = root / ACCURACIES_FILE

    def damaged(cause: str) -> StorageError:
        return AccuraciesDamagedError(f"{path} is damaged: {cause}", "start covey-edge run: it sets the file aside")

    found = read_document(path, lambda data: cast("Accuracies", decode_checked(data, type=Accuracies)), damaged)
    return Accuracies() if found is None else found


def add_measured(root: Path, measured: Measured) -> None:
    """Add a measurement, and forget the oldest beyond KEPT; a damaged file is set aside.

    Raises:
        StorageError: the file cannot be read or written.
    """
    try:
        before = read_accuracies(root).measured
    except AccuraciesDamagedError as error:
        _LOG.warning("earlier accuracies are lost: %s", error.what)
        set_aside(root / ACCURACIES_FILE, error.what)
        before = ()
    write_atomically(root / ACCURACIES_FILE, encode_checked(Accuracies(measured=(*before, measured)[-KEPT:])))


def held_out(accuracies: Accuracies, largest_fall: float) -> HeldOut | None:
    """Return the last measurement beside the best that it can be compared with; None: there is none.

    Args:
        accuracies: the device's measurements.
        largest_fall: by how much the accuracy may be below the best.
    """
    if not accuracies.measured:
        return None
    last = accuracies.measured[-1]
    best = max(
        one.accuracy
        for one in accuracies.measured
        if (one.bundle_sha256, one.rows_sha256) == (last.bundle_sha256, last.rows_sha256)
    )
    return HeldOut(last.accuracy, last.rows, best, has_fallen=last.accuracy < best - largest_fall)


def known_held_out(root: Path, largest_fall: float) -> HeldOut | None:
    """Return the same of a state directory; None also where its file is damaged, which the next measurement mends.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        return held_out(read_accuracies(root), largest_fall)
    except AccuraciesDamagedError:
        return None
