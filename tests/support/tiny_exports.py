"""Exports of tiny models: what a test may ask of the ``tiny_export`` fixture, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiny_models import make_model

from export.bundle.bundle_writer import export_bundle
from export.bundle.options import ExportOptions
from export.model.lora import DEFAULT_TARGETS
from export.model.options import BaseOptions, LoraOptions, TaskOptions
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level

LABELS = ["bad", "good"]


@dataclass(frozen=True)
class TinyExport:
    """A tiny model and the options of its export; equal ones are one bundle. ``train`` is B, AB or full."""

    kind: str
    task: str = "classify-head"
    splits: tuple[int, ...] = (1, 2)
    train: str = "B"
    pooling: str | None = None
    layers: tuple[int, ...] | None = None
    max_tokens: int = 32
    levels: tuple[Level, ...] = ()
    recompute: bool = False
    rescale: bool = False
    runtimes: tuple[str, ...] = ("onnxruntime",)
    decode: bool | None = None
    base: str = "float32"
    products: str = "float32"
    stack: bool = False
    norm: bool = False

    def task_options(self) -> TaskOptions:
        """Return the options of the task; a masked language model has a prompt with a mask."""
        template, words = "{text} It was", [" terrible", " great"]
        if self.kind.endswith("-mlm"):
            template, words = "{text} It was {mask}", ["terrible", "great"]
        prompt = self.task == "classify-prompt"
        return TaskOptions(
            kind=self.task,
            labels=[] if self.task == "causal-lm" else LABELS,
            template=template if prompt else None,
            label_words=words if prompt else None,
            max_tokens=self.max_tokens,
            pooling=self.pooling,
            logit_scale=3.0 if self.task == "classify-head" else None,
            head_init=None,
        )

    def write(self, models: Path, out: Path) -> Bundle:
        """Export to a folder; the model itself is made once, under ``models``."""
        if not (models / self.kind).exists():
            make_model(self.kind, models / self.kind)
        folder = look_at(models / self.kind)
        layers = None if self.layers is None else list(self.layers)
        lora = LoraOptions(4, 8.0, DEFAULT_TARGETS[folder.model_type], layers, list(self.train), seed=1, norm=self.norm)
        options = ExportOptions(
            self.task_options(),
            None if self.train == "full" else lora,
            list(self.splits),
            runtimes=self.runtimes,
            max_batch=16,
            levels=self.levels,
            recompute=self.recompute,
            rescale=self.rescale,
            decode=self.decode,
            stack=self.stack,
            base=None if self.base == "float32" else BaseOptions(self.base, self.products),
        )
        return export_bundle(folder, options, out).bundle
