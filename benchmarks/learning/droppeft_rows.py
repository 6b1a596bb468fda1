"""The rows of droppeft.py: every device's private rows in each division, and its own test rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from benchmarks.harness.division import device_names, divide_by_movie, rows_file, write_device_rows, write_held_out
from benchmarks.learning.droppeft_variants import DIVISIONS
from server.samples.reviews import divide_by_label

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.harness.comparison import Setup

OWN_TEST_EVERY, MOST_OWN_TEST = 5, 15
"""Every fifth row of a device tests its own model: the first 15 of them. The others are dropped, not trained on."""
_OWN = "-own"


def own_test_file(folder: Path, device: str) -> Path:
    """Return the file of the rows that test a device's own model."""
    return rows_file(folder, device, _OWN)


def write_rows(setup: Setup, root: Path) -> None:
    """Divide the reviews in every way, and write a folder per division."""
    by_movie = divide_by_movie(setup)
    write_held_out(by_movie, root)
    for name, alpha in DIVISIONS.items():
        division = by_movie if alpha is None else divide_by_label(by_movie, alpha)
        own = [rows[::OWN_TEST_EVERY][:MOST_OWN_TEST] for rows in division.devices]
        private = [[row for index, row in enumerate(rows) if index % OWN_TEST_EVERY] for rows in division.devices]
        write_device_rows(own, root / name, _OWN)
        write_device_rows(private, root / name)


def most_frequent_label_accuracy(folder: Path) -> float:
    """Return the accuracy on own test rows of answering with the most frequent label of the device's private rows."""
    right = total = 0
    for device in device_names():
        own, private = _labels(own_test_file(folder, device)), _labels(rows_file(folder, device))
        right += own.count(max(sorted(set(private)), key=private.count))
        total += len(own)
    return right / total


def _labels(path: Path) -> list[str]:
    return [json.loads(line)["label"] for line in path.read_text().splitlines()]
