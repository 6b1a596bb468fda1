"""The back block of a bundle for many adapters in one call, and what it differs by from one adapter at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.stack import ADAPTERS, LOSSES, NoStack, back_size, find_stack
from edge_runtime.engines.bundle_engine import bind_inputs, frozen_tensors
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_engine import Boundary, BundleEngine, GraphOpener
    from edge_runtime.values import FloatRows, FloatVector


class BundleBackStack:
    """The back block of a split for up to P adapters at once: see engine.BackStack.

    It takes what the front of a BundleEngine of the same runtime gives. The base weights are the mapped ones.

    Args:
        bundle: an opened bundle.
        split: one of its splits.
        adapters: P, the most adapters of a call.
        opener: loads the runtime's graph.

    Raises:
        BundleError: there is no stack graph for the split and the runtime, or it cannot be loaded.
    """

    def __init__(self, bundle: Bundle, split: int, adapters: int, opener: GraphOpener) -> None:
        found = find_stack(bundle.path, bundle.manifest, split, opener.runtime)
        if isinstance(found, NoStack):
            raise BundleError(found.reason, "export the bundle again with: covey export --stack")
        graph = found.graph
        self._workspace: FloatRows = np.zeros((adapters, back_size(bundle.manifest, split)), dtype=np.float32)
        others = msgspec.structs.replace(graph, inputs=[tensor for tensor in graph.inputs if tensor.name != ADAPTERS])
        bound: dict[str, Any] = bind_inputs(others, frozen_tensors(bundle), {})
        self._runner = opener.open(bundle, graph, bound | {ADAPTERS: self._workspace})

    @property
    def workspace(self) -> FloatRows:
        """See BackStack."""
        return self._workspace

    def losses(self, boundary: Boundary, batch: Batch, count: int) -> list[float]:
        """See BackStack."""
        self._runner.bind({ADAPTERS: self._workspace[:count]})
        found: list[float] = self._runner.to_numpy(self._runner.run(batch, boundary)[LOSSES]).tolist()
        return found


def stacked_losses(
    engine: BundleEngine,
    stack: BundleBackStack,
    theta: FloatVector,
    other: FloatVector,
    batch: Batch,
) -> tuple[list[float], list[float]]:
    """Return the losses of three adapters in one call, and the same one after the other.

    Args:
        engine: front and back; its workspaces are overwritten.
        stack: the back for at least three adapters.
        theta: the adapter of the front and of the first and third back, float32, (parameters,).
        other: the adapter of the second back.
        batch: the rows.
    """
    cut = engine.front_workspace.size
    np.copyto(engine.front_workspace, theta[:cut])
    boundary = engine.front(batch)
    backs, singly = (theta[cut:], other[cut:], theta[cut:]), []
    for row, back in zip(stack.workspace, backs, strict=False):
        np.copyto(row, back)
        np.copyto(engine.back_workspace, back)
        singly.append(engine.back(boundary, batch))
    return stack.losses(boundary, batch, len(backs)), singly
