"""Types of values that several rooms share: vectors, tensors, token ids, hashes, names, counts, strict structs."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

# "(?!\n)$" is the end and nothing after it: Python's "$" alone also matches before a last line break, and its "\Z"
# means nothing in the regular expressions of JSON Schema, where these patterns are published.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}(?!\n)$"
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}(?!\n)$")]
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
MirrorUrl = Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
TokenIds = np.ndarray[tuple[Any, ...], np.dtype[np.int64]]
Tensor = np.ndarray[tuple[Any, ...], np.dtype[Any]]
FloatRows = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]  # (adapters, n): a vector in each row
FloatVector = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]  # (n,): theta, a gradient, scalars
Logits = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]  # (rows, labels)
TokenLosses = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]  # (chunks, chunk), nats


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a document: unknown fields are refused, values never change."""
