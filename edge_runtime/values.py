"""Types of values that several rooms share: flat vectors, tensors, token ids, hashes, names, counts."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
TokenIds = NDArray[np.int64]
Tensor = np.ndarray[tuple[Any, ...], np.dtype[Any]]
FloatVector = np.ndarray[tuple[Any, ...], np.dtype[np.float32]]
Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
