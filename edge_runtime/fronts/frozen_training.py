"""Gradients of the layers behind a frozen front, whose activations are looked up: see kept_front.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import top_level
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.data.batch import Batch
    from edge_runtime.data.rows import Rows
    from edge_runtime.engines.bundle_training import BundleTrainingEngine
    from edge_runtime.fronts.kept_front import KeptFront
    from edge_runtime.values import FloatVector


class FrozenTraining:
    """Loss and gradients of top levels, behind a front that does not change: see engine.TrainingEngine.

    Args:
        engine: runs the graphs.
        front: gives what crosses the cut.
        graphs: the training graphs that begin behind the front's split, by level: behind.find_behind.
    """

    def __init__(self, engine: BundleTrainingEngine, front: KeptFront, graphs: Mapping[Level, Graph]) -> None:
        self._engine, self.front, self._graphs = engine, front, graphs

    @property
    def levels(self) -> tuple[Level, ...]:
        """See TrainingEngine."""
        return tuple(self._graphs)

    def fill(self, rows: Rows, indices: Iterable[int], goes_on: Callable[[], bool]) -> bool:
        """Run the front for the rows of a round that are missing: see KeptFront.fill."""
        return self.front.fill(rows, indices, goes_on, self._engine.forget_pages)

    def gradients(
        self,
        theta: FloatVector,
        layers: Sequence[int],
        batch: Batch,
        out: FloatVector,
        scales: Sequence[float] | None = None,
        *,
        whole: bool = False,
    ) -> float:
        """See TrainingEngine; ``theta`` has the front that is frozen.

        Raises:
            BundleError: the level is not one of ``levels``: all layers run, and the last ones are trained.
        """
        graph = self._graphs.get(top_level(len(layers))) if whole and scales is None else None
        if graph is None:
            raise BundleError(
                f"the bundle has no training graph of {len(layers)} layers behind the frozen front",
                "choose another level, or export the bundle again with --levels top:K and --split",
            )
        boundary = self.front.arrays(batch, hidden_states_only=True)
        return self._engine.gradients_behind(graph, theta, layers, batch, boundary, out)
