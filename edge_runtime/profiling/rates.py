"""Measures how fast this machine perturbs, replays, multiplies and copies, and its link, for profiles and plans."""

from __future__ import annotations

import json
import statistics
import sys
import time
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import NetworkError
from edge_runtime.network.transport import Message
from edge_runtime.perturbation.perturb import FRONT, perturb_into, perturb_many_into

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.network.fetch import Fetcher
    from edge_runtime.network.transport import Transport
    from edge_runtime.values import FloatVector

    Clock = Callable[[], float]

_PARAMETERS = 1 << 16
_DIRECTIONS = 16
_LEAST_S = 1e-6
_LINK_BYTES = 8 << 20
_PIECE_BYTES = 64 * 1024
_PIECES = 8
_MATRIX = 512
_COPY_BYTES = 32 << 20
_REPEATS = 15


def replay_parameters_per_s(clock: Clock) -> float:
    """Return the parameters × directions that this machine replays per second; takes a few ms."""
    vector: FloatVector = np.zeros(_PARAMETERS, dtype=np.float32)
    seeds, scales = list(range(_DIRECTIONS)), [0.5] * _DIRECTIONS
    perturb_many_into(vector, vector, seeds, FRONT, scales)
    started = clock()
    perturb_many_into(vector, vector, seeds, FRONT, scales)
    return vector.size * len(seeds) / max(clock() - started, _LEAST_S)


def perturb_parameters_per_s(clock: Clock) -> float:
    """Return the parameters that this machine perturbs per second, one direction at a time; takes a few ms."""
    clean: FloatVector = np.zeros(_PARAMETERS, dtype=np.float32)
    out = np.empty_like(clean)
    perturb_into(out, clean, 0, FRONT, 0.5)
    started = clock()
    for seed in range(_DIRECTIONS):
        perturb_into(out, clean, seed, FRONT, 0.5)
    return clean.size * _DIRECTIONS / max(clock() - started, _LEAST_S)


def matmul_flop_per_s(clock: Clock) -> float:
    """Return the floating-point operations per second of a float32 matrix product on NumPy's cores; about 100 ms."""
    left = np.ones((_MATRIX, _MATRIX), dtype=np.float32)
    out = np.empty_like(left)
    return 2 * _MATRIX**3 / _median_s(lambda: np.matmul(left, left, out=out), clock)


def copy_bytes_per_s(clock: Clock) -> float:
    """Return the bytes read and written per second while one core copies memory; about 100 ms."""
    source = np.ones(_COPY_BYTES, dtype=np.uint8)
    out = np.empty_like(source)
    return 2 * _COPY_BYTES / _median_s(lambda: np.copyto(out, source), clock)


def _median_s(run: Callable[[], object], clock: Clock) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        started = clock()
        run()
        seconds.append(clock() - started)
    return max(statistics.median(seconds), _LEAST_S)


def link_down_bytes_per_s(fetcher: Fetcher, manifest: Manifest) -> float | None:
    """Return how fast the server's blobs come, from the bundle's largest file of at most 8 MB; None: too small to tell.

    Raises:
        NetworkError: the server cannot be reached, or does not serve this bundle.
    """
    files = [entry for entry in manifest.files if entry.size_bytes <= _LINK_BYTES]
    largest = max(files, key=lambda entry: entry.size_bytes)
    fetcher.data(largest.sha256, largest.size_bytes)
    return fetcher.bytes_per_s


def link_up_bytes_per_s(
    transport: Transport, topic: str, clock: Clock = time.monotonic, timeout_s: float = 60
) -> float:
    """Return how fast messages go to the broker and come back: a lower bound of the way up.

    Args:
        transport: a connection without other subscriptions.
        topic: a topic that nobody else uses.
        clock: monotonic seconds.
        timeout_s: how long the pieces may take.

    Raises:
        NetworkError: they did not come back in time.
    """
    transport.subscribe(topic)
    transport.publish(topic, b"")  # once it is back, the subscription is active
    _await(transport, 1, clock, timeout_s)
    started = clock()
    for _ in range(_PIECES):
        transport.publish(topic, bytes(_PIECE_BYTES))
    _await(transport, _PIECES, clock, timeout_s)
    return _PIECES * _PIECE_BYTES / max(clock() - started, _LEAST_S)


def _await(transport: Transport, messages: int, clock: Clock, timeout_s: float) -> None:
    ends_at = clock() + timeout_s
    while messages:
        event = transport.receive(max(0.0, ends_at - clock()) or _LEAST_S)
        if event is None and clock() >= ends_at:
            raise NetworkError(
                f"messages to the broker did not come back in {timeout_s:g} s",
                "check the link to the broker with covey-edge doctor",
            )
        messages -= isinstance(event, Message)


def main() -> int:
    """Print the rates of multiplying and copying as JSON: a process of its own, since NumPy reads its threads once."""
    rates = {
        "matmul_flop_per_s": matmul_flop_per_s(time.perf_counter),
        "copy_bytes_per_s": copy_bytes_per_s(time.perf_counter),
    }
    sys.stdout.write(json.dumps(rates))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
