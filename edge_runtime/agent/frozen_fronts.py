"""The engines of plans that freeze the front, and the folder in which this device keeps the front's activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.engines.bundle_engine import BundleEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.fronts.front_folder import MB, FrontFolder
from edge_runtime.fronts.front_key import front_key
from edge_runtime.fronts.frozen_engine import FrozenFront

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.engines.engine import Engine
    from edge_runtime.fronts.front_folder import FrontRows
    from edge_runtime.fronts.front_key import FrontKey
    from edge_runtime.values import FloatVector


class FrozenFronts:
    """Makes engines whose front is looked up; keeps one of them, and its file open, from round to round.

    Args:
        config: the device's configuration.
        state_dir: the device's state directory; the files are in its folder ``fronts``.
    """

    def __init__(self, config: EdgeConfig, state_dir: Path) -> None:
        self._folder = FrontFolder(state_dir / "fronts", config.fronts.cache_mb * MB)
        self._precision = config.fronts.precision
        self._engines = Engines(config.engine, config.threads, config.execution_providers)
        self._made: tuple[FrontKey, BundleEngine, FrozenFront, FrontRows | None] | None = None

    def engine(self, loaded: LoadedBundle, split: int, theta: FloatVector) -> Engine[Any]:
        """Return front and back at a split, with the front at ``theta``.

        Args:
            loaded: the bundle, with its rows.
            split: one of its splits.
            theta: the adapter, float32, (parameters,); the front's part of it is read as long as the front is frozen.

        Raises:
            CoveyError: see LoadedBundle.engine.
        """
        inner = loaded.engine(split)
        if not isinstance(inner, BundleEngine):
            return inner  # a bowl has no rows to look up
        front = theta[: inner.front_workspace.size]
        key = front_key(loaded.bundle, split, front, self._engines, self._precision)
        if self._made is not None and (self._made[0], self._made[1]) == (key, inner):
            self._made[2].read_from(front)
            if self._made[3] is not None:
                self._made[3].live_rows = len(loaded.rows)
            return self._made[2]
        self.close()
        rows = self._folder.open(key, len(loaded.rows))
        frozen = FrozenFront(inner, front, loaded.bundle.manifest.task, rows, self._precision)
        self._made = (key, inner, frozen, rows)
        return frozen

    def close(self) -> None:
        """Forget the engine, and close its file and the folder: other work needs the memory."""
        if self._made is not None:
            self._made[2].close()
            self._made = None
        self._folder.close()
