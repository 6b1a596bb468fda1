"""The engines of plans that freeze the front, and the folder in which this device keeps the front's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.behind import find_behind
from edge_runtime.bundle.layout import front_size
from edge_runtime.engines.bundle_engine import BundleEngine, BundleFront
from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.fronts.front_folder import MB, FrontFolder
from edge_runtime.fronts.front_key import front_key
from edge_runtime.fronts.frozen_engine import FrozenFront
from edge_runtime.fronts.frozen_training import FrozenTraining
from edge_runtime.fronts.kept_front import KeptFront

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.engines.engine import Engine, TrainingEngine
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.fronts.front_key import FrontKey
    from edge_runtime.values import FloatVector


class FrozenFronts:
    """Makes engines whose front is looked up; keeps one of them, and its file open, from round to round.

    Args:
        config: the device's configuration.
        state_dir: the device's state directory; the files are in its folder ``fronts``.
        boot_id: names the start of the machine: see KeptFront.
    """

    def __init__(self, config: EdgeConfig, state_dir: Path, boot_id: str | None = None) -> None:
        self._boot_id = boot_id
        self._folder = FrontFolder(state_dir / "fronts", config.fronts.cache_mb * MB)
        self._precision = config.fronts.precision
        self._engines = Engines(config.engine, config.threads, config.execution_providers)
        self._made: _Made | None = None

    def engine(self, loaded: LoadedBundle, split: int, theta: FloatVector) -> Engine[Any]:
        """Return front and back at a split, with the front at ``theta``.

        Args:
            loaded: the bundle, with its rows.
            split: one of its splits.
            theta: the adapter, float32, (parameters,); the front's part of it is read as long as the front is frozen.

        Raises:
            CoveyError: see LoadedBundle.engine.
        """
        self._leave(BundleEngine, split)
        inner = loaded.engine(split)
        if not isinstance(inner, BundleEngine):
            return inner  # a bowl has no rows to look up
        task = loaded.bundle.manifest.task

        def made(front: FloatVector, rows: FrontRows | None) -> KeptFront:
            return FrozenFront(inner, front, task, rows, self._precision, self._boot_id)

        kept = self._kept(loaded, split, theta, inner, made)
        assert isinstance(kept, FrozenFront)  # noqa: S101 it was made of front and back
        return kept

    def graphs_behind(self, loaded: LoadedBundle, split: int | None) -> dict[Level, Graph]:
        """Return the training graphs that begin behind a frozen front's split, by level; empty: there are none.

        Raises:
            BundleError: their description is damaged.
        """
        if split is None:
            return {}
        return find_behind(loaded.bundle.path, loaded.bundle.manifest, split, self._engines.runtime)

    def training_engine(
        self, loaded: LoadedBundle, split: int, theta: FloatVector, graphs: Mapping[Level, Graph]
    ) -> TrainingEngine:
        """Return the engine of the training graphs behind a split, with the front at ``theta``.

        Args:
            loaded: the bundle, with its rows.
            split: one of its splits.
            theta: see ``engine``.
            graphs: see ``graphs_behind``.

        Raises:
            CoveyError: see LoadedBundle.training_engine.
        """
        self._leave(BundleTrainingEngine, split)
        inner = loaded.training_engine()
        if not isinstance(inner, BundleTrainingEngine):
            return inner  # a bowl has no rows to look up
        bundle = loaded.bundle

        def made(front: FloatVector, rows: FrontRows | None) -> KeptFront:
            block = BundleFront(bundle, split, self._engines.opener())
            return KeptFront(block, front, bundle.manifest.task, rows, self._precision, self._boot_id)

        return FrozenTraining(inner, self._kept(loaded, split, theta, inner, made), graphs)

    def _kept(
        self,
        loaded: LoadedBundle,
        split: int,
        theta: FloatVector,
        inner: BundleEngine | BundleTrainingEngine,
        made: Callable[[FloatVector, FrontRows | None], KeptFront],
    ) -> KeptFront:
        """Return the front of the last round if it serves this one too; else what ``made`` makes of front and file."""
        front = theta[: front_size(loaded.bundle.manifest.parameters, split)]
        key = front_key(loaded.bundle, split, front, self._engines, self._precision)
        if self._made is not None and (self._made.key, self._made.made_of) == (key, inner):
            return self._made.again(front, len(loaded.rows))
        self.close()
        rows = self._folder.open(key, len(loaded.rows))
        kept = made(front, rows)
        self._made = _Made(key, inner, kept, rows)
        return kept

    def _leave(self, kind: type[BundleEngine | BundleTrainingEngine], split: int) -> None:
        """Close what is kept of another kind or split before an engine is made: memory need not hold both."""
        if self._made is not None and not (isinstance(self._made.made_of, kind) and self._made.key.split == split):
            self.close()

    def close(self) -> None:
        """Forget the engine, and close its file and the folder: other work needs the memory."""
        if self._made is not None:
            self._made.kept.close()
            self._made = None
        self._folder.close()


@dataclass(frozen=True)
class _Made:
    """What is kept from round to round.

    Attributes:
        key: what its activations depend on.
        made_of: the engine that it serves; another one means another bundle or split.
        kept: the front.
        rows: where its activations are; None: nowhere.
    """

    key: FrontKey
    made_of: BundleEngine | BundleTrainingEngine
    kept: KeptFront
    rows: FrontRows | None

    def again(self, front: FloatVector, live_rows: int) -> KeptFront:
        """Return the front for another round: its parameters are the same, but lie in another array."""
        self.kept.read_from(front)
        if self.rows is not None:
            self.rows.live_rows = live_rows
        return self.kept
