"""Seeds: every random choice of a job follows from its job seed, so that a report carries only scalars.

A seed is the first eight bytes, little-endian, of SHA-256 over the tuple that names its use. No state, no order of
calls: the server derives the same seed from the same names.
"""

from __future__ import annotations

import hashlib
import struct

_DOMAIN = b"covey-seed-v1"


def _derive(purpose: bytes, job_seed: int, *parts: int | str) -> int:
    digest = hashlib.sha256(_DOMAIN + b"\0" + purpose + b"\0" + struct.pack("<Q", job_seed))
    for part in parts:
        data = part.encode() if isinstance(part, str) else struct.pack("<Q", part)
        digest.update(struct.pack("<I", len(data)) + data)
    return int.from_bytes(digest.digest()[:8], "little")


def front_seed(job_seed: int, round_index: int, device: str, step: int, i: int) -> int:
    """Seed of front direction ``i`` of a step, 0 … 2⁶⁴−1."""
    return _derive(b"front", job_seed, round_index, device, step, i)


def back_seed(job_seed: int, round_index: int, device: str, step: int, i: int, j: int) -> int:
    """Seed of back direction ``j`` under front direction ``i`` of a step, 0 … 2⁶⁴−1."""
    return _derive(b"back", job_seed, round_index, device, step, i, j)


def epoch_seed(job_seed: int, device: str, epoch: int) -> int:
    """Seed of a device's order of rows in one epoch, 0 … 2⁶⁴−1."""
    return _derive(b"epoch", job_seed, device, epoch)


def cohort_seed(job_seed: int, round_index: int) -> int:
    """Seed of the choice of devices for a round, 0 … 2⁶⁴−1."""
    return _derive(b"cohort", job_seed, round_index)


def arm_seed(job_seed: int, round_index: int) -> int:
    """Seed of the bandit's choices for a round, 0 … 2⁶⁴−1."""
    return _derive(b"arms", job_seed, round_index)


def pool_seed(job_seed: int, index: int) -> int:
    """Seed ``index`` of a job's finite pool of directions, 0 … 2⁶⁴−1."""
    return _derive(b"pool", job_seed, index)


def layer_seed(job_seed: int, round_index: int, device: str, step: int) -> int:
    """Seed of the choice of layers for a step with layer dropout, 0 … 2⁶⁴−1."""
    return _derive(b"layers", job_seed, round_index, device, step)


def importance_seed(job_seed: int, device: str) -> int:
    """Seed of the importance of a device's layers where it is random, 0 … 2⁶⁴−1."""
    return _derive(b"importance", job_seed, device)
