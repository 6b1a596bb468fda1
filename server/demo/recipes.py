"""What the demo trains, per model: package, export flags and job. docs/demo.md says how they were chosen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.samples.packages import MINILM, SMOLLM2

if TYPE_CHECKING:
    from server.samples.packages import Package


@dataclass(frozen=True)
class Recipe:
    """One demo.

    Attributes:
        name: its name for ``--model``.
        minutes: how long it takes on two cores of an x86 machine, without fetching packages.
        package: the package with the model.
        export_flags: flags of ``covey export``.
        max_tokens: tokens after which reviews are cut.
        movies_per_device: number of movies whose reviews are one device's private rows.
        test_movies: number of movies of the held-out reviews; no device has reviews of them.
        rows_per_test_movie: held-out reviews per movie.
        probe_rows_per_device: private reviews per device that the linear probe trains on; fewer for a slow model.
        job: fields of ``job.toml``.
        step: fields of its ``[step]``.
        start_movies: number of further movies with one review each, from which the head starts; 0: it starts at zero.
        stld: fields of the job's ``[stld]``; empty: all devices are forward-only.
        levels: levels of the devices that backpropagate, by number of the device.
    """

    name: str
    minutes: int
    package: Package
    export_flags: tuple[str, ...]
    max_tokens: int
    movies_per_device: int
    test_movies: int
    rows_per_test_movie: int
    probe_rows_per_device: int
    job: dict[str, Any] = field(default_factory=dict)
    step: dict[str, Any] = field(default_factory=dict)
    start_movies: int = 0
    stld: dict[str, Any] = field(default_factory=dict)
    levels: dict[int, int] = field(default_factory=dict)


_MINILM = Recipe(
    name="minilm",
    minutes=3,
    package=MINILM,
    # The back block is the head alone: 64 perturbations of the head cost less than one pass through the encoder.
    export_flags=("--task", "classify-head", "--lora-layers", "5", "--logit-scale", "10", "--split", "6"),
    max_tokens=48,
    movies_per_device=8,
    test_movies=300,
    rows_per_test_movie=2,
    probe_rows_per_device=1000,
    job={"rounds": 20, "steps": 4, "batch_size": 16, "cohort": 0},
    step={"back_perturbations": 64, "learning_rate": 0.03, "eps": 0.01},
)

RECIPES = {
    "minilm": _MINILM,
    "minilm-hybrid": dataclasses.replace(
        _MINILM,
        name="minilm-hybrid",
        minutes=2,
        export_flags=("--task", "classify-head", "--logit-scale", "5", "--split", "6", "--levels", "1.0,0.5"),
        movies_per_device=28,
        test_movies=220,
        rows_per_test_movie=3,
        probe_rows_per_device=250,
        job={"rounds": 12, "steps": 4, "batch_size": 16, "cohort": 0, "eval_every": 4},
        step={"back_perturbations": 64, "learning_rate": 0.05, "eps": 0.01},
        start_movies=64,
        stld={"steps": 8, "batch_size": 16, "learning_rate": 0.01, "personal_share": 0.17},
        levels={1: 6, 2: 3},
    ),
    "smollm2": Recipe(
        name="smollm2",
        minutes=8,
        package=SMOLLM2,
        export_flags=(
            "--task",
            "classify-prompt",
            "--template",
            "{text} It was",
            "--label-words",
            " terrible, great",
            "--split",
            "20",
        ),
        max_tokens=48,
        movies_per_device=8,
        test_movies=200,
        rows_per_test_movie=1,
        probe_rows_per_device=40,
        job={"rounds": 24, "steps": 2, "batch_size": 8, "cohort": 4},
        step={"back_perturbations": 4, "learning_rate": 0.04, "eps": 0.01},
    ),
}
