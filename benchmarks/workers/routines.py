"""The type of a worker's routines, and the batch and the step rule that many of them use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.batch import Batch
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import TokenIds

Routine = Callable[[], object]
"""What a worker does once each time it is asked. Its result is not used, unless it is OwnTime."""
Routines = dict[str, Routine]
"""The routines of one kind of worker, by name; most kinds have one, ``run``."""
Settings = dict[str, Any]
"""The settings of a worker: JSON values, by name."""


@dataclass(frozen=True)
class OwnTime:
    """The result of a routine that measured the time itself.

    Attributes:
        seconds: what the worker answers with, in place of the time that the call of the routine took.
    """

    seconds: float


def bundle_of(settings: Settings) -> Bundle:
    """Open the bundle of the settings."""
    return open_bundle(Path(settings["bundle"]))


def random_batch(settings: Settings) -> Batch:
    """Return a batch of random tokens (1000 to 1999) and labels, the same each time, without padding."""
    rng = np.random.Generator(np.random.PCG64(1))
    shape = (settings["rows"], settings["tokens"])
    input_ids: TokenIds = rng.integers(1000, 2000, shape)
    labels: TokenIds = rng.integers(0, 2, (settings["rows"],))
    return Batch(input_ids, np.ones(shape, np.int64), labels)


def rule_of(settings: Settings) -> StepRule:
    """Return the rule of the forward-only step."""
    return StepRule(
        front_perturbations=settings["p1"], back_perturbations=settings["p2"], eps=settings.get("eps", 1e-2)
    )
