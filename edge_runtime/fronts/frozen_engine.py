"""An engine whose front block is frozen: see kept_front.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.fronts.kept_front import KeptFront

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_engine import Boundary, BundleEngine
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.fronts.front_key import Precision
    from edge_runtime.values import FloatVector


class FrozenFront(KeptFront):
    """Front and back of a bundle, with a front that does not change: see engine.Engine.

    Args:
        engine: front and back.
        front: see KeptFront.
        task: see KeptFront.
        rows: see KeptFront.
        precision: see KeptFront.
        start: see KeptFront.
    """

    def __init__(
        self,
        engine: BundleEngine,
        front: FloatVector,
        task: Task,
        rows: FrontRows | None = None,
        precision: Precision = "float32",
        start: str | None = None,
    ) -> None:
        super().__init__(engine, front, task, rows, precision, start)
        self._engine = engine

    @property
    def front_workspace(self) -> FloatVector:
        """See Engine. Nothing is to be written: ``front_reads`` is empty."""
        return self._engine.front_workspace

    @property
    def back_workspace(self) -> FloatVector:
        """See Engine."""
        return self._engine.back_workspace

    def front_reads(self, batch: Batch) -> Sequence[slice]:  # noqa: ARG002 the front's parameters are the engine's own
        """Return nothing: the front is at its own parameters."""
        return ()

    def back_reads(self, batch: Batch) -> Sequence[slice]:
        """See Engine."""
        return self._engine.back_reads(batch)

    def front(self, batch: Batch) -> Boundary:
        """Return what crosses the cut, from the rows that are kept and from runs of the front."""
        return self._engine.boundary_of(self.arrays(batch))

    def back(self, boundary: Boundary, batch: Batch) -> float:
        """See Engine."""
        return self._engine.back(boundary, batch)

    def back_outputs(self, boundary: Boundary, batch: Batch) -> dict[str, Any]:
        """See BundleEngine."""
        return self._engine.back_outputs(boundary, batch)
