"""Writes one lowered graph of a bundle for ExecuTorch, from the cache where an equal one was lowered before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.graphs.executorch_pieces import default_cache, lower_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import torch

    from export.graphs.executorch_pieces import Piece, PieceSizes


@dataclass(frozen=True)
class Lowering:
    """Where a bundle's lowered graphs go, and how large their batches may be.

    Attributes:
        bundle: the bundle's folder.
        max_batch: the largest number of rows per batch, for which ExecuTorch plans its memory.
        progress: called with a line of text for each graph.
    """

    bundle: Path
    max_batch: int
    progress: Callable[[str], None]

    def write(self, file: str, piece: Piece, examples: Mapping[str, torch.Tensor], sizes: PieceSizes) -> None:
        """Lower a piece and write it to ``file``, a path in the bundle.

        Raises:
            ExportError: ExecuTorch cannot lower the piece.
        """
        made = lower_piece(piece, examples, sizes, default_cache())
        (self.bundle / file).write_bytes(made.data)
        how = "taken from the cache" if made.cached else f"lowered in {made.seconds:.1f} s"
        self.progress(f"{file}: {how}, {made.delegates} blocks for XNNPACK")
