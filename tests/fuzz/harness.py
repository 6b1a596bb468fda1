"""Runs a target on damaged inputs, and fails on a crash, an unhinted error, a slow input, or one that takes memory."""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mutate import Form, mutated

from edge_runtime.errors import CoveyError, FaultError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

FOUND = Path(__file__).parent / "found"
"""Inputs that crashed once, in a folder for each target; every run of the tests tries them again."""
FROM_OUTSIDE = ("messages", "envelopes", "tensors", "manifests", "bundles", "tokens", "certificates", "http", "joins")
"""Targets that read what comes over a network."""
LONGEST_S = float(os.environ.get("COVEY_FUZZ_SECONDS", "12"))
MOST_CPU_S = 5.0
MOST_BYTES = 256 << 20
_KEEP = "COVEY_FUZZ_KEEP"


def seconds_of(name: str) -> float:
    """Return how long a target is fuzzed in the slow tests: a third, where it reads files of its own machine."""
    return LONGEST_S if name in FROM_OUTSIDE or "COVEY_FUZZ_SECONDS" in os.environ else LONGEST_S / 3


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        seeds: valid inputs.
        form: what they are.
        run: reads an input. It raises a CoveyError where it refuses it, and AssertionError where it accepts what it
            must not, or answers what is not documented.
        refusals: the documented errors.
        count: inputs of the default tests: about a second.
    """

    seeds: Sequence[bytes]
    form: Form
    run: Callable[[bytes], None]
    refusals: tuple[type[CoveyError], ...] = (CoveyError,)
    count: int = 1000

    def try_input(self, data: bytes) -> bool:
        """Run one input; return whether it was accepted."""
        cpu_s, bytes_before = time.thread_time(), reset_peak()
        try:
            self.run(data)
            accepted = True
        except self.refusals as error:
            _check_refusal(error)
            accepted = False
        cpu_s, grown = time.thread_time() - cpu_s, peak_bytes() - bytes_before
        assert cpu_s < MOST_CPU_S, f"it took {cpu_s:.1f} s"
        assert grown < MOST_BYTES, f"it took {grown >> 20} MB"
        return accepted


def _check_refusal(error: CoveyError) -> None:
    assert not isinstance(error, FaultError), error
    assert error.what, "an error that says nothing"


def fuzz(name: str, target: Target, rng: random.Random, seconds: float | None) -> tuple[int, int]:
    """Run a target for some seconds, or for its own count of inputs; return how many were tried and accepted.

    An input that fails is kept in the folder that COVEY_FUZZ_KEEP names, else in the current one.
    """
    for seed in target.seeds:
        assert target.try_input(seed), f"a seed is refused, nothing behind its checks is reached: {seed[:200]!r}"
    tried = accepted = 0
    until = time.monotonic() + (seconds or 0.0)
    while tried < target.count if seconds is None else time.monotonic() < until:
        data = mutated(rng, target.seeds, target.form)
        try:
            accepted += target.try_input(data)
        except BaseException as error:
            kept = Path(os.environ.get(_KEEP, ".")) / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}"
            kept.write_bytes(data)
            raise AssertionError(f"{name}: input {tried} ({len(data)} bytes, kept in {kept}): {error!r}") from error
        tried += 1
    return tried, accepted


def found_inputs(name: str) -> list[bytes]:
    """Return the inputs at which a target crashed once."""
    return [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]


def reset_peak() -> int:
    """Let the kernel forget the largest memory that this process had; return the bytes that it has now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or a container that forbids it: the peak so far counts
        return peak_bytes()
    return peak_bytes()


def peak_bytes() -> int:
    """Return the largest memory that this process had, in bytes; 0 where the system does not tell."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
