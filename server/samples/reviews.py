"""Rotten Tomatoes reviews, divided by movie: all reviews of a movie belong to one device or to the test rows.

Comparisons also divide the devices' reviews by label, with a skew that one number sets.
"""

from __future__ import annotations

import bz2
import csv
import io
import json
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

LABELS = ("rotten", "fresh")
_SPLIT_SEED = 20260101


@dataclass(frozen=True)
class Review:
    """A quotation from a review, and the critic's verdict: one of LABELS."""

    text: str
    label: str


@dataclass(frozen=True)
class Division:
    """Reviews of disjoint sets of movies.

    Attributes:
        devices: the private rows of each device.
        test: held-out rows, on which the server evaluates.
        start: rows of whoever exports the model: a new head starts at their class means.
    """

    devices: list[list[Review]]
    test: list[Review]
    start: list[Review] = field(default_factory=list)


def read_reviews(path: Path) -> dict[str, list[Review]]:
    """Return the reviews by movie, without plot summaries."""
    text = bz2.decompress(path.read_bytes()).decode()
    movies: dict[str, list[Review]] = defaultdict(list)
    for row in csv.DictReader(io.StringIO(text)):
        if row["category"] in LABELS:
            movies[row["movie_name"]].append(Review(row["text"], row["category"]))
    return dict(movies)


def divide(
    movies: dict[str, list[Review]],
    n_devices: int,
    movies_per_device: int,
    test_movies: int,
    rows_per_test_movie: int,
    start_movies: int = 0,
    number: int = 0,
) -> Division:
    """Divide the movies among devices and test rows.

    Args:
        movies: reviews by movie.
        n_devices: number of devices.
        movies_per_device: number of movies whose reviews are one device's rows.
        test_movies: number of movies of the test rows.
        rows_per_test_movie: test rows per movie, at most.
        start_movies: number of movies with one row each in ``start``.
        number: number of the division; the same number always gives the same one.
    """
    names = sorted(movies)
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED + number)).permutation(len(names))
    shuffled = iter([names[index] for index in order])
    devices = [
        [review for _ in range(movies_per_device) for review in movies[next(shuffled)]] for _ in range(n_devices)
    ]
    test = [review for _ in range(test_movies) for review in movies[next(shuffled)][:rows_per_test_movie]]
    return Division(devices, test, [movies[next(shuffled)][0] for _ in range(start_movies)])


def divide_by_label(division: Division, alpha: float, seed: int = _SPLIT_SEED) -> Division:
    """Redistribute the devices' reviews with a label skew drawn from a Dirichlet distribution.

    As in Hsu, Qi and Brown, 2019: all devices have equally many reviews, and a device's shares of the labels are drawn
    from Dirichlet(alpha × the shares over all reviews). Once a label has run out, a device gets other labels instead,
    so the last devices are less skewed than the first. The reviews of one movie may be on several devices; test and
    start rows stay the same.

    Args:
        division: a division by movie.
        alpha: 0.1: most devices have nearly one label; 10: nearly all devices have the shares over all reviews.
        seed: seed of the draw.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    reviews = [review for rows in division.devices for review in rows]
    labels = sorted({review.label for review in reviews})
    left = {label: [review for review in reviews if review.label == label] for label in labels}
    for rows in left.values():
        rng.shuffle(rows)
    of_all = np.array([len(left[label]) / len(reviews) for label in labels])
    devices = []
    for index in range(len(division.devices)):
        share, more = divmod(len(reviews), len(division.devices))
        size = share + (index < more)
        wanted = rng.multinomial(size, rng.dirichlet(alpha * of_all))
        mine = [left[label].pop() for label, n in zip(labels, wanted, strict=True) for _ in range(n) if left[label]]
        while len(mine) < size:
            mine.append(max(left.values(), key=len).pop())
        rng.shuffle(mine)
        devices.append(mine)
    return Division(devices, division.test, division.start)


def labelled(review: Review) -> dict[str, str]:
    """Return a review as a row of a classifier."""
    return {"text": review.text, "label": review.label}


def completion(review: Review) -> dict[str, str]:
    """Return a review as a row of a causal language model: its label, and the text that follows."""
    return {"prompt": f"{review.label}:", "completion": f" {review.text}"}


def write_jsonl(reviews: Sequence[Review], path: Path, row_of: Callable[[Review], dict[str, str]] = labelled) -> None:
    """Write reviews as JSON Lines, each as ``row_of`` says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row_of(review)) + "\n" for review in reviews)


def majority_accuracy(test: Sequence[Review]) -> float:
    """Return the accuracy of predicting the most frequent label for every row."""
    labels = [review.label for review in test]
    return max(labels.count(label) for label in LABELS) / len(labels)
