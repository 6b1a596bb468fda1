"""What the user asks for: the options of the task and of the LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.base import Arithmetic, BaseKind
    from edge_runtime.bundle.manifest import TaskKind
    from export.model.tasks import Pooling


@dataclass(frozen=True)
class TaskOptions:
    """The task flags of ``covey export``; None means the default, or what the folder's adapter was trained with.

    Attributes:
        kind: classify-head, classify-prompt or causal-lm.
        labels: names of the labels; empty for causal-lm.
        template: the prompt, with ``{text}`` once, and with ``{mask}`` once for a masked language model.
        label_words: one word per label, for classify-prompt.
        max_tokens: longer rows are cut to this many tokens.
        pooling: how a new head turns tokens into one vector.
        logit_scale: constant factor on a new head's logits.
        head_init: file of labelled rows from which a new head is initialised.
    """

    kind: TaskKind
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    max_tokens: int
    pooling: Pooling | None
    logit_scale: float | None
    head_init: Path | None


@dataclass(frozen=True)
class BaseOptions:
    """The ``--base…`` flags of ``covey export``, where the base is quantised.

    Attributes:
        kind: the integers that frozen weights are stored as.
        products: what front, back and predict compute products with them in; see bundle.base.Base.
        rows: file of labelled rows on which the quantised model is compared; None: the golden rows.
    """

    kind: BaseKind
    products: Arithmetic = "float32"
    rows: Path | None = None


@dataclass(frozen=True)
class LoraOptions:
    """The ``--lora-…`` flags of ``covey export``.

    Attributes:
        r: rank of a new adapter.
        alpha: LoRA's scale; its product is multiplied by alpha / r.
        targets: names of the linear modules that get LoRA.
        layers: indexes of the layers that get LoRA; None means all.
        trained: the matrices that are trained: B, or A and B.
        seed: seed of a new adapter's A matrices.
        activations: file of public rows, from whose activations a new adapter's A matrices start; None: from the seed.
        norm: whether the final norm's weights are trained too, those between the last layer and the output embedding.
    """

    r: int
    alpha: float
    targets: list[str]
    layers: list[int] | None
    trained: list[str]
    seed: int
    activations: Path | None = None
    norm: bool = False
