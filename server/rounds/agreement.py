"""How far each device of a round moved along with the others: the cosine between its path and the sum of theirs.

Every path counts with length 1. Else one device with a path ten times as long would turn the sum around, and all honest
devices would seem to run against it. server/views/against.py says over many rounds who runs against the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.layout import total_size
from edge_runtime.forward_only.coefficients import Terms, add_terms, step_coefficients
from edge_runtime.forward_only.replay import round_terms
from edge_runtime.perturbation.perturb import BACK, FRONT
from edge_runtime.protocol.round_log import unpack_scalars
from server.job.robust import FEWEST_TO_OUTVOTE
from server.rounds.merge import groups_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.protocol.round_log import RoundLog
    from server.rounds.merge import Delta

_DIGITS = 4
"""Decimal places of a cosine that are kept."""
_BLOCK_NUMBERS = 1 << 20
"""Numbers of all devices' paths that are held in memory at once: 4 MB, which stays in a processor's cache."""


class _Sums:
    """Sums over blocks of coordinates, from which each device's cosine with the others follows."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._along, self._own, self._rest = (np.zeros(len(names)) for _ in range(3))

    def add(self, paths: np.ndarray[Any, Any], who: Sequence[int]) -> None:
        """Add a block; ``paths`` is (devices, coordinates), of the devices with the indexes ``who``."""
        total = paths.sum(axis=0)
        dots = (paths @ total).astype(np.float64)
        own = np.einsum("ij,ij->i", paths, paths).astype(np.float64)
        index = list(who)
        self._along[index] += dots - own
        self._own[index] += own
        self._rest[index] += float(total.astype(np.float64) @ total) - 2 * dots + own

    def cosines(self) -> dict[str, float]:
        """Return the cosine of each device whose path, and whose others' sum, has a length."""
        found = {}
        for name, along, own, rest in zip(self._names, self._along, self._own, self._rest, strict=True):
            if own > 0 and rest > 1e-12 * own:
                found[name] = round(max(-1.0, min(1.0, float(along / math.sqrt(own * rest)))), _DIGITS)
        return found


def forward_agreement(log: RoundLog, size: int, *, compare_paths: bool) -> dict[str, float]:
    """Return the cosine of each forward-only device of a round; none where there are fewer than three.

    Where directions recur among devices, their coefficients are compared: random directions are nearly orthogonal.
    Else the paths themselves are replayed.

    Args:
        log: the round, with the devices' scalars.
        size: number of parameters.
        compare_paths: whether to replay paths.

    Raises:
        ProtocolError: the scalars of a device do not fit the rule.
    """
    if len(log.devices) < FEWEST_TO_OUTVOTE or not (log.rule.merges_devices or compare_paths):
        return {}
    if log.rule.shared_directions:
        return _shared_agree(log, size)
    terms = {
        device.device: round_terms(
            msgspec.structs.replace(log, terms=None, devices=[msgspec.structs.replace(device, weight=1.0)])
        )
        for device in log.devices
    }
    lengths = {name: _length(found, log.front_size, size) for name, found in terms.items()}
    terms = {name: found for name, found in terms.items() if 0 < lengths[name] < math.inf}
    if len(terms) < FEWEST_TO_OUTVOTE:
        return {}
    if log.rule.merges_devices:
        return _coefficients_agree(terms, lengths, log.front_size, size)
    return _paths_agree(terms, lengths, log.front_size, size)


def _shared_agree(log: RoundLog, size: int) -> dict[str, float]:
    """Compare the coefficients of directions that all devices use, step by step."""
    front_scale, back_scale = math.sqrt(log.front_size), math.sqrt(size - log.front_size)
    paths = []
    for device in log.devices:
        mean_square, path = log.mean_square, []
        for scalars in unpack_scalars(device.scalars, log.steps, log.rule.scalars_per_step):
            coefficients, mean_square = step_coefficients(scalars, log.rule, mean_square)
            path += [front_scale * c for c in coefficients.front] + [back_scale * c for c in coefficients.back]
        paths.append(path)
    matrix = np.array(paths)
    lengths = np.sqrt(np.square(matrix).sum(axis=1))
    moved = [index for index, length in enumerate(lengths) if 0 < length < math.inf]
    if len(moved) < FEWEST_TO_OUTVOTE:
        return {}
    sums = _Sums([log.devices[index].device for index in moved])
    sums.add(matrix[moved] / lengths[moved, None], range(len(moved)))
    return sums.cosines()


def _length(terms: Terms, front_size: int, size: int) -> float:
    """Return the length of a sum of directions, whose entries are independent and ±1."""
    front, back = (math.fsum(c * c for _, c in block) for block in (terms.front, terms.back))
    return math.sqrt(front * front_size + back * (size - front_size))


def _coefficients_agree(
    terms: Mapping[str, Terms], lengths: Mapping[str, float], front_size: int, size: int
) -> dict[str, float]:
    scales = (math.sqrt(front_size), math.sqrt(size - front_size))
    paths = {
        name: {
            (block, seed): c * scale / lengths[name]
            for block, scale, part in ((FRONT, scales[0], found.front), (BACK, scales[1], found.back))
            for seed, c in part
        }
        for name, found in terms.items()
    }
    total: dict[tuple[int, int], float] = {}
    for path in paths.values():
        for direction, value in path.items():
            total[direction] = total.get(direction, 0.0) + value
    cosines = {}
    for name, path in paths.items():
        others = [(value, total[direction] - value) for direction, value in path.items()]
        rest = math.fsum(other * other for _, other in others)
        own = math.fsum(value * value for value, _ in others)
        if own > 0 and rest > 1e-12 * own:  # else nobody else used its directions
            along = math.fsum(value * other for value, other in others)
            cosines[name] = round(max(-1.0, min(1.0, along / math.sqrt(own * rest))), _DIGITS)
    return cosines


def _paths_agree(
    terms: Mapping[str, Terms], lengths: Mapping[str, float], front_size: int, size: int
) -> dict[str, float]:
    sums, everybody = _Sums(list(terms)), range(len(terms))
    width = max(1, _BLOCK_NUMBERS // len(terms))
    for block, first, last in ((FRONT, 0, front_size), (BACK, front_size, size)):
        for start in range(first, last, width):
            paths = np.zeros((len(terms), min(width, last - start)), dtype=np.float32)
            for row, (name, found) in zip(paths, terms.items(), strict=True):
                scaled = [(seed, c / lengths[name]) for seed, c in (found.front if block == FRONT else found.back)]
                add_terms(row, row, scaled, block, offset=start - first)
            sums.add(paths, everybody)
    return sums.cosines()


def delta_agreement(parameters: Sequence[Parameter], n_layers: int, deltas: Mapping[str, Delta]) -> dict[str, float]:
    """Return the cosine of each backprop device of a round, over the layers that it sent; none for fewer than three.

    Args:
        parameters: the layout.
        n_layers: L.
        deltas: what the devices sent, by device.
    """
    everything = slice(0, total_size(parameters))
    lengths = {
        name: float(np.linalg.norm(deltas[name].movement[everything].astype(np.float64))) for name in sorted(deltas)
    }
    names = [name for name, length in lengths.items() if length > 0]
    if len(names) < FEWEST_TO_OUTVOTE:
        return {}
    sums = _Sums(names)
    for group, where in groups_of(parameters).items():
        outside = not 0 <= group < n_layers
        who = [index for index, name in enumerate(names) if outside or group in deltas[name].layers]
        if len(who) < 2:  # one path agrees with nothing
            continue
        width = max(1, _BLOCK_NUMBERS // len(who))
        for start in range(where.start, where.stop, width):
            block = slice(start, min(start + width, where.stop))
            paths = np.empty((len(who), block.stop - block.start), dtype=np.float32)
            for path, index in zip(paths, who, strict=True):
                np.divide(deltas[names[index]].movement[block], lengths[names[index]], out=path)
            sums.add(paths, who)
    return sums.cosines()
