"""What a user asks for: options of the task and of the LoRA adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.tasks import Pooling


@dataclass(frozen=True)
class TaskOptions:
    """What the task flags of ``covey export`` ask for; None: the default, or what the adapter was trained with."""

    kind: str
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    max_tokens: int
    pooling: Pooling | None
    logit_scale: float | None
    head_init: Path | None


@dataclass(frozen=True)
class LoraOptions:
    """What ``--lora-…`` asks for. ``layers`` None: all; ``trained``: the matrices that are trained."""

    r: int
    alpha: float
    targets: list[str]
    layers: list[int] | None
    trained: list[str]
    seed: int
