"""What a device says of its own model: how well it does on rows of its owner that it never trains on."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.values import Count

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class HeldOut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The accuracy of a device's own model on its held-out rows, in the last measurement. No row is in it.

    Attributes:
        accuracy: share of right answers; causal-lm: of right tokens.
        rows: number of held-out rows.
        best: the best accuracy that the device has measured lately on the same rows with the same bundle.
        has_fallen: whether the accuracy is further below the best than the device's owner allows.
    """

    accuracy: Share
    rows: Count
    best: Share
    has_fallen: bool
