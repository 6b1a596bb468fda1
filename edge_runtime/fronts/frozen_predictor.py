"""Predictions on rows that come again and again, at adapters whose front stays: the front is run once for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.layout import front_size
from edge_runtime.fronts.front_folder import DEFAULT_MB, MB, FrontFolder
from edge_runtime.fronts.front_key import front_key
from edge_runtime.fronts.frozen_engine import FrozenFront

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch, CompletionBatch
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.fronts.kept_front import FrontCounts
    from edge_runtime.values import FloatVector, Logits, TokenIds, TokenLosses


class FrozenPredictor:
    """The whole model of a bundle, cut at a split: see engine.Predictor.

    Adapters whose front is that of ``theta`` are looked up and run behind the split; others are run whole.

    Args:
        bundle: the bundle.
        split: one of its splits.
        theta: an adapter with the front that stays, float32, (parameters,).
        engines: makes the two blocks.
        folder: where activations are kept.
        rows: number of rows that come again.
        whole: the whole model.

    Raises:
        BundleError: the split's graphs cannot be loaded.
    """

    def __init__(
        self,
        bundle: Bundle,
        split: int,
        theta: FloatVector,
        engines: Engines,
        folder: Path,
        rows: int,
        whole: Predictor,
    ) -> None:
        self._whole, self._size = whole, front_size(bundle.manifest.parameters, split)
        self._front: FloatVector = theta[: self._size]
        engine = engines.make_engine(bundle, split)
        self._folder = FrontFolder(folder, DEFAULT_MB * MB)
        kept = self._folder.open(front_key(bundle, split, self._front, engines, "float32"), rows)
        self._frozen = FrozenFront(engine, self._front, bundle.manifest.task, kept)
        self._asked: FloatVector | None = None
        self._is_kept = False

    @property
    def counts(self) -> FrontCounts:
        """What was looked up and run so far."""
        return self._frozen.counts

    def logits(self, theta: FloatVector, batch: Batch) -> Logits:
        """See Predictor."""
        if not self._has_front(theta):
            return self._whole.logits(theta, batch)
        logits: Logits = self._outputs(theta, batch)["logits"]
        return logits

    def token_scores(self, theta: FloatVector, batch: CompletionBatch) -> tuple[TokenLosses, TokenIds]:
        """See Predictor."""
        if not self._has_front(theta):
            return self._whole.token_scores(theta, batch)
        outputs = self._outputs(theta, batch)
        return outputs["token_losses"], outputs["best_tokens"]

    def _has_front(self, theta: FloatVector) -> bool:
        if theta is not self._asked:  # an evaluation asks for many batches at one adapter
            self._asked, self._is_kept = theta, np.array_equal(theta[: self._size], self._front)
        return self._is_kept

    def _outputs(self, theta: FloatVector, batch: Batch) -> dict[str, Any]:
        boundary = self._frozen.front(batch)
        for part in self._frozen.back_reads(batch):  # last: the two workspaces may share memory
            np.copyto(self._frozen.back_workspace[part], theta[self._size :][part])
        return self._frozen.back_outputs(boundary, batch)

    def close(self) -> None:
        """Close the file, and let others have the folder."""
        self._frozen.close()
        self._folder.close()
