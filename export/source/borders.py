"""Row lengths at which a model's computation changes, and models whose computation follows the row's length.

A traced graph has one path. Where a model computes long rows otherwise than short ones, the golden vectors hold a row
on either side of the border; where it would choose its positions by the longest row, the model is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SLIDING = "sliding_attention"
_ATTENTION = ("full_attention", SLIDING)
_FIXED_ROPE = ("default", "linear", "llama3", "yarn")

_MPNET_FARTHEST = 128
"""MPNet's distance from which all share the last bucket; its code, not its configuration, holds it."""


def check_traceable(config: Any) -> None:
    """Check that one traced graph computes rows of every length as the model does.

    Args:
        config: the model's Hugging Face configuration.

    Raises:
        ExportError: its rotary frequencies depend on the longest row of a batch, or its layers have a kind of attention
            that Covey does not know.
    """
    for kind in _rope_types(getattr(config, "rope_parameters", None) or {}):
        if kind not in _FIXED_ROPE:
            raise ExportError(
                f"the model's rope_type is {kind!r}: its positions depend on the longest row of a batch, "
                "which a traced graph cannot follow",
                f"give a model whose rope_type is one of: {', '.join(_FIXED_ROPE)}",
            )
    kinds = set(getattr(config, "layer_types", None) or [])
    unknown = sorted(kinds - set(_ATTENTION))
    if unknown:
        raise ExportError(
            f"the model has layers of {', '.join(unknown)}, which Covey does not trace",
            f"give a model whose layer_types are: {', '.join(_ATTENTION)}",
        )
    if SLIDING in kinds and not _window(config):
        raise ExportError(
            f"the model has layers of {SLIDING}, but its sliding_window is {getattr(config, 'sliding_window', None)}",
            "set sliding_window in config.json to the window's tokens",
        )


def border_lengths(config: Any, max_tokens: int) -> list[int]:
    """Return the row lengths on either side of each border, in tokens, ascending; none is above ``max_tokens``.

    A row of n tokens has distances up to n - 1. The borders are the sliding window, the first logarithmic bucket of
    relative positions, and the distance from which all share the last bucket.

    Args:
        config: the model's Hugging Face configuration.
        max_tokens: the longest row of the bundle.
    """
    last_lengths = sorted(set(_last_lengths(config)))
    found = {length for last in last_lengths for length in (last, last + 1)}
    return sorted(length for length in found if 1 < length <= max_tokens)


def _last_lengths(config: Any) -> Iterator[int]:
    """Yield the longest row on the near side of each border."""
    if SLIDING in (getattr(config, "layer_types", None) or []):
        yield _window(config)
    if config.model_type == "deberta-v2" and getattr(config, "relative_attention", False):
        farthest = int(getattr(config, "max_relative_positions", -1))
        farthest = farthest if farthest > 0 else int(config.max_position_embeddings)
        buckets = int(getattr(config, "position_buckets", -1))
        if buckets > 0:
            yield buckets // 2 + 1  # distances up to half the buckets have a bucket each
        yield farthest
    if config.model_type == "mpnet":
        yield int(config.relative_attention_num_buckets) // 4
        yield _MPNET_FARTHEST


def _window(config: Any) -> int:
    return int(getattr(config, "sliding_window", None) or 0)


def _rope_types(parameters: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kinds of rotary positions; some configurations have one for each kind of attention."""
    if "rope_type" in parameters:
        yield str(parameters["rope_type"])
    for value in parameters.values():
        if isinstance(value, dict):
            yield from _rope_types(value)
