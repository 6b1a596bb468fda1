"""What crosses the cut and is the same for all rows of a length: masks, rotary tables, relative positions.

These tensors are cheap for the front graph and large for a file, and with a frozen front the graph is not run. They are
learned from two runs on one row of the longest length, one of which is all padding but for its first token, and put
together from parts of these for any batch. Whether that is right for a bundle's graphs is tried before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.data.batch import Batch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.bundle.manifest import GraphOutput
    from edge_runtime.values import Tensor

_CLOSE = 1e-3
"""Largest difference between a row alone and the same row in a padded batch, relative to the row's largest value."""


def is_row_tensor(output: GraphOutput) -> bool:
    """Whether a boundary tensor has a vector for each token of each row: (batch, tokens, …), float32."""
    shape = output.shape
    named = [size for size in shape if isinstance(size, str)]
    return output.dtype == "float32" and len(shape) > 2 and shape[:2] == ["batch", "tokens"] and len(named) == 2


def batch_of(lengths: Sequence[int], tokens: int, token_id: int) -> Batch:
    """Return a batch of rows of these lengths, padded to ``tokens``, in which every token is the same."""
    mask = (np.arange(tokens) < np.asarray(lengths)[:, None]).astype(np.int64)
    ids = np.full((len(lengths), tokens), token_id, dtype=np.int64)
    return Batch(ids, mask, np.zeros(len(lengths), dtype=np.int64))


@dataclass(frozen=True)
class Part:
    """One boundary tensor: its runs without and with padding, and its axes.

    Attributes:
        full: of a row without padding, of the longest length.
        short: of a row of the same length that has one token, and padding behind it.
        token_axes: the axes that are as long as the padded rows, ascending.
        has_batch: whether the first axis is that of rows.
        is_masked: whether queries that are padding see the keys of tokens as they see the first key, not as a token
            in their place does.
    """

    full: Tensor
    short: Tensor
    token_axes: tuple[int, ...]
    has_batch: bool
    is_masked: bool = False

    def of(self, lengths: Sequence[int], tokens: int) -> Tensor:
        """Return the tensor of a batch of rows of these lengths, padded to ``tokens``."""
        window = tuple(slice(0, tokens) if axis in self.token_axes else slice(None) for axis in range(self.full.ndim))
        full, short = self.full[window], self.short[window]
        if not self.has_batch:
            return np.ascontiguousarray(full)
        out: Tensor = np.repeat(full, len(lengths), axis=0)
        if not self.token_axes:
            return out
        keys = self.token_axes[-1]
        for index, length in enumerate(lengths):
            if length == tokens:
                continue
            padding = _at(out.ndim, {0: index, keys: slice(length, None)})
            out[padding] = short[_at(out.ndim, {0: 0, keys: slice(length, None)})]
            if self.is_masked and len(self.token_axes) == 2:
                queries = slice(length, None)
                below = {self.token_axes[0]: queries, keys: slice(0, length)}
                first = {self.token_axes[0]: queries, keys: slice(0, 1)}
                out[_at(out.ndim, {0: slice(index, index + 1), **below})] = short[_at(out.ndim, first)]
        return out


def _at(axes: int, chosen: Mapping[int, Any]) -> tuple[Any, ...]:
    return tuple(chosen.get(axis, slice(None)) for axis in range(axes))


class Frame:
    """Makes the boundary tensors that depend on the rows' lengths alone. ``learn_frame`` makes it.

    Args:
        parts: by name.

    Attributes:
        parts: the same.
    """

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self.parts = parts

    def tensors(self, lengths: Sequence[int], tokens: int) -> dict[str, Tensor]:
        """Return these tensors of a batch of rows of the given lengths, padded to ``tokens``, by name."""
        return {name: part.of(lengths, tokens) for name, part in self.parts.items()}


def learn_frame(
    outputs: Sequence[GraphOutput],
    run: Callable[[Batch], Mapping[str, Tensor]],
    most_tokens: int,
    pad_token_id: int,
) -> Frame | None:
    """Learn the frame of a front graph, and try it on batches with padding.

    Args:
        outputs: what crosses the cut.
        run: runs the front graph.
        most_tokens: tokens of the longest row.
        pad_token_id: is no token of a row here.

    Returns:
        The frame; None where what crosses the cut is of another kind: the front must then be run for every batch.
    """
    token = 1 if pad_token_id != 1 else 2
    full, short = (run(batch_of([length], most_tokens, token)) for length in (most_tokens, 1))
    made: dict[str, Part] = {}
    for output in outputs:
        if is_row_tensor(output):
            continue
        axes = tuple(axis for axis, size in enumerate(output.shape) if size == "tokens")
        has_batch = output.shape[:1] == ["batch"]
        made[output.name] = Part(full[output.name], short[output.name], axes, has_batch)
    few = min(most_tokens, 7)
    tries = [
        batch_of(sorted({few, max(1, few // 2), 1}), few, token),
        batch_of([max(1, most_tokens // 3), max(1, most_tokens - 1)], max(1, most_tokens - 1), token),
    ]
    found = [(batch, run(batch)) for batch in tries]
    for name, part in made.items():
        fitting = next((p for p in (part, _masked(part)) if all(_fits(p, name, *seen) for seen in found)), None)
        if fitting is None:
            return None
        made[name] = fitting
    alone = all(_are_alone(outputs, run, batch, seen, token) for batch, seen in found)
    return Frame(made) if alone else None


def _masked(part: Part) -> Part:
    return Part(part.full, part.short, part.token_axes, part.has_batch, is_masked=True)


def _fits(part: Part, name: str, batch: Batch, seen: Mapping[str, Tensor]) -> bool:
    made = part.of(batch.attention_mask.sum(axis=1).tolist(), batch.input_ids.shape[1])
    return made.shape == seen[name].shape and made.tobytes() == np.ascontiguousarray(seen[name]).tobytes()


def _are_alone(
    outputs: Sequence[GraphOutput],
    run: Callable[[Batch], Mapping[str, Tensor]],
    batch: Batch,
    seen: Mapping[str, Tensor],
    token: int,
) -> bool:
    """Whether what the front gives for a row does not depend on padding and the other rows of its batch."""
    for index, length in enumerate(batch.attention_mask.sum(axis=1).tolist()):
        alone = run(batch_of([length], length, token))
        for output in outputs:
            if is_row_tensor(output):
                found, wanted = seen[output.name][index, :length], alone[output.name][0]
                if not np.abs(found - wanted).max() <= _CLOSE * max(1.0, float(np.abs(wanted).max())):
                    return False
    return True
