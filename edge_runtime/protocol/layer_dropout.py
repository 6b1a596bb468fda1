"""Settings of layer dropout (STLD) that server and device agree on: how layers are drawn, and the local steps.

DropPEFT, abstract; the fields and their meaning are our reading. ``backprop/layer_draw.py`` draws the layers.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Shape = Literal["uniform", "incremental", "decay", "normal"]
Draw = Literal["exact", "bernoulli"]
Criterion = Literal["gradient", "fisher", "update", "random", "depth"]


class Stld(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a backprop device does in a round.

    Attributes:
        shape: drop probabilities over depth; see inclusion_probabilities.
        draw: ``exact``: every mini-batch runs as many layers as the level says; ``bernoulli``: every layer is drawn by
            itself, as in the paper, so the number varies among the levels that the device can hold.
        steps: local steps.
        batch_size: rows a step.
        micro_batch_size: rows that are run at once; the gradients of a step's micro-batches are added up. None: as many
            as the device's free memory holds.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: longest gradient of a step, over what is trained in it; None: it is not clipped.
        personal_share: share of the layers that stay personal, the most important ones; 0: all are shared.
        importance: what makes a layer important: see ptls.py.
        rescale: what an active layer adds to its input is divided by its probability to be active; needs a bundle
            exported with ``--rescale``. Not in a message unless a job says it, so that it needs no protocol version.
    """

    shape: Shape = "uniform"
    draw: Draw = "exact"
    steps: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    micro_batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] | None = None
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1e-3
    weight_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    clip_norm: Annotated[float, msgspec.Meta(gt=0)] | None = 1.0
    personal_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    importance: Criterion = "gradient"
    rescale: bool | msgspec.UnsetType = msgspec.UNSET

    @property
    def most_rows(self) -> int:
        """Rows of the largest micro-batch, where memory is not short."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    @property
    def fewest_rows(self) -> int:
        """Rows of the smallest micro-batch that a device may run to make a level fit."""
        return min(self.micro_batch_size or 1, self.batch_size)
