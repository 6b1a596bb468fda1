"""What a device says of itself when it joins."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.bundle.memory_need import level_need, levels_that_fit
from edge_runtime.device.memory import free_bytes
from edge_runtime.engines import executorch_build
from edge_runtime.protocol.messages import Birth, Capability

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import Workshop
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.store.store import Journal

METHODS = ["spzo"]  # with every switch of rule.py


def make_birth(config: EdgeConfig, boot_id: str, journal: Journal, workshop: Workshop | None) -> Birth:
    """Return the birth message of a device as it is now."""
    return Birth(
        device=config.name,
        boot_id=boot_id,
        covey_version=__version__,
        python_version=platform.python_version(),
        machine=platform.machine(),
        runtimes=_runtimes(config.engine),
        methods=METHODS,
        rows=len(workshop.rows) if workshop is not None else None,
        bundle_sha256=journal.bundle_sha256,
        adapter_sha256=journal.adapter_sha256,
        capability=capability(config, workshop),
    )


def _runtimes(engine: Runtime) -> dict[str, str]:
    """Return versions by name; the engine's comes first."""
    version = executorch_build.VERSION if engine == "executorch" else metadata.version(engine)
    return {engine: version, **{name: metadata.version(name) for name in ("numpy", "tokenizers")}}


def capability(config: EdgeConfig, workshop: Workshop | None) -> Capability:
    """Return how the device can train: what its owner lets it do, and what its memory can hold."""
    bytes_free = free_bytes()
    if not config.backpropagates:
        return Capability(kind="forward-only", levels=[], bytes_free=bytes_free)
    if workshop is None:
        return Capability(kind="backprop", levels=None, bytes_free=bytes_free)
    manifest, engine = workshop.bundle.manifest, config.engine
    if manifest.levels and not manifest.levels_for(engine):
        return Capability(kind="forward-only", levels=[], bytes_free=bytes_free)
    needs = [level_need(manifest, level, engine) for level in manifest.levels]
    fit = levels_that_fit(needs, bytes_free, rows=1)
    return Capability(kind="backprop", levels=[need for need in needs if need.level in fit], bytes_free=bytes_free)
