"""The options of one export, checked once before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import CAUSAL_LM
from export.errors import ExportError
from export.source.borders import check_traceable
from export.trace.batches import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Runtime
    from export.model.options import BaseOptions, LoraOptions, TaskOptions
    from export.source.folder import ModelFolder

MAX_BATCH_EXECUTORCH = 32
SMALLEST_MAX_BATCH = 16
"""Number of rows for which devices predict at once."""


@dataclass(frozen=True)
class ExportOptions:
    """What ``covey export`` makes of a model folder.

    Attributes:
        task: the task.
        lora: the adapter, of which only ``trained`` counts where the folder has an adapter. None is full mode: every
            weight is trained.
        splits: index of the back block's first layer, for each split.
        runtimes: the runtimes to write graphs for; ONNX Runtime is always one, because the server evaluates with it.
        max_batch: the largest number of rows per batch on ExecuTorch.
        levels: levels to write training graphs for, ascending.
        recompute: whether training graphs compute layers again instead of keeping their activations.
        rescale: whether training graphs take a factor on what each layer adds to its input.
        decode: whether a decode graph is written, with which devices continue prompts with a cache; None: for
            causal-lm with a float32 base.
        base: how frozen weights are quantised; None: they stay float32.
        stack: whether back blocks for many adapters in one call are written.

    Raises:
        ExportError: options contradict each other, or one is out of range.
    """

    task: TaskOptions
    lora: LoraOptions | None
    splits: list[int]
    runtimes: Sequence[Runtime] = ("onnxruntime",)
    max_batch: int = MAX_BATCH_EXECUTORCH
    levels: Sequence[Level] = ()
    recompute: bool = False
    rescale: bool = False
    decode: bool | None = None
    base: BaseOptions | None = None
    stack: bool = False

    def __post_init__(self) -> None:
        if self.decode and self.task.kind != CAUSAL_LM:
            raise ExportError(
                f"--decode: the task is {self.task.kind}, which continues no text", "leave it out, or use causal-lm"
            )
        if self.base is not None:
            self._check_base(self.base)
        if self.stack:
            self._check_stack()
        if self.levels and self.lora is None:
            raise ExportError(
                "--levels: with --train full, a gradient would be as large as the model",
                "use --train lora, or leave out --levels to train every weight with forward passes alone",
            )
        if not SMALLEST_MAX_BATCH <= self.max_batch <= MAX_BATCH:
            raise ExportError(
                f"--max-batch {self.max_batch} is out of range", f"choose from {SMALLEST_MAX_BATCH} to {MAX_BATCH}"
            )

    def _check_stack(self) -> None:
        """Check that back blocks can take many adapters.

        Raises:
            ExportError: the task is causal-lm, the base is quantised, or every weight or the final norm is trained.
        """
        reason = None
        if self.task.kind == CAUSAL_LM:
            reason = "the loss of causal-lm is summed up in chunks, one adapter at a time"
        elif self.base is not None:
            reason = f"with --base {self.base.kind} the runtime would lay out the quantised weights a second time"
        elif self.lora is None:
            reason = "with --train full, memory would have to hold as many models as adapters"
        elif self.lora.norm:
            reason = "many adapters run as products of matrices, and the final norm of --train-norm is none"
        if reason is not None:
            raise ExportError(f"--stack: {reason}", "leave out --stack: devices then run one adapter after the other")

    def _check_base(self, base: BaseOptions) -> None:
        """Check that a quantised base can be trained on, and run.

        Raises:
            ExportError: every weight is trained, or graphs for ExecuTorch or a decode graph are wanted.
        """
        if self.lora is None:
            raise ExportError(
                f"--base {base.kind}: with --train full every weight is trained, and none is frozen",
                "use --train lora, or leave out --base",
            )
        if self.decode:
            raise ExportError(
                f"--base {base.kind}: the decode graph takes float32 weights, which the bundle would not have",
                "leave out --decode: text is continued without a cache then; or leave out --base",
            )
        if self.for_executorch:
            raise ExportError(
                f"--base {base.kind}: ExecuTorch reads quantised weights only where they are part of a graph's file, "
                "so that graphs could not share them",
                "use --runtime onnx, or leave out --base",
            )

    @property
    def for_executorch(self) -> bool:
        """Whether graphs are written for ExecuTorch too."""
        return "executorch" in self.runtimes

    @property
    def has_decode(self) -> bool:
        """Whether a decode graph is written; of a quantised base there is none."""
        return self.task.kind == CAUSAL_LM and self.base is None if self.decode is None else self.decode

    def check_folder(self, folder: ModelFolder) -> None:
        """Check that the model can be traced for rows of every length, and cut at the splits.

        Raises:
            ExportError: it cannot, or a split is out of range.
        """
        check_traceable(folder.config)
        for split in self.splits:
            if not 1 <= split <= folder.layers:
                raise ExportError(
                    f"--split {split} is out of range: the model has {folder.layers} layers",
                    f"choose from 1 to {folder.layers}: the layer at which the back block begins",
                )
