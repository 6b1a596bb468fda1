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
    """The settings of a round on a backprop device.

    Attributes:
        shape: drop probabilities over depth; see inclusion_probabilities.
        draw: ``exact``: every mini-batch runs exactly ``level`` layers; ``bernoulli``: each layer is drawn
            independently, as in the paper, so that the number varies among the levels that the device can hold.
        steps: local steps.
        batch_size: rows per step.
        micro_batch_size: rows that run at once; the gradients of a step's micro-batches are summed. None: as many as
            fit the device's free memory.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        clip_norm: largest norm of a step's gradient, over the parameters that the step trains; None: no clipping.
        personal_share: share of the layers that stay personal, the most important ones; 0: all are shared.
        importance: what makes a layer important: see backprop/importance.py.
        rescale: whether to divide what an active layer adds to its input by the probability that the layer is active;
            needs a bundle exported with ``--rescale``. A message carries the field only where a job sets it, so
            the field needed no new protocol version.
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
        """Number of rows of the largest micro-batch, where memory suffices."""
        return min(self.micro_batch_size or self.batch_size, self.batch_size)

    @property
    def fewest_rows(self) -> int:
        """Number of rows of the smallest micro-batch that a device may run to make a level fit."""
        return min(self.micro_batch_size or 1, self.batch_size)
