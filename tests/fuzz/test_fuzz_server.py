"""Fuzzing of what the server reads, and of what a broker sends. No crash, no hang, nothing damaged is accepted.

By default each target gets a fixed number of inputs; ``-m slow`` gives it 30 s (some 10 s), or what
COVEY_FUZZ_SECONDS says: 600 for ten minutes each. COVEY_FUZZ_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest
from harness import LONGEST_S, found_inputs, fuzz, seconds_of
from targets_server import SERVER_TARGETS

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

SEED = int(os.environ.get("COVEY_FUZZ_SEED", random.SystemRandom().randrange(2**32)))


@pytest.mark.parametrize("name", SERVER_TARGETS)
def test_damaged_inputs(name: str, tmp_path: Path, tiny_bundle: Bundle) -> None:
    with SERVER_TARGETS[name](tmp_path, tiny_bundle) as target:
        for data in found_inputs(name):
            target.try_input(data)
        assert fuzz(name, target, random.Random(name), None)[0] == target.count


@pytest.mark.slow
@pytest.mark.timeout(LONGEST_S + 120)
@pytest.mark.parametrize("name", SERVER_TARGETS)
def test_damaged_inputs_for_longer(name: str, tmp_path: Path, tiny_bundle: Bundle) -> None:
    with SERVER_TARGETS[name](tmp_path, tiny_bundle) as target:
        tried, accepted = fuzz(name, target, random.Random(f"{name} {SEED}"), seconds_of(name))
    print(f"{name}: {tried} inputs, {accepted} accepted, COVEY_FUZZ_SEED={SEED}")  # noqa: T201 shown with -s
