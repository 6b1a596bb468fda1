"""The announcement that a device publishes when it joins."""

from __future__ import annotations

import platform
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime import __version__
from edge_runtime.bundle.levels import TOP_LEVELS
from edge_runtime.bundle.memory_need import level_need, levels_that_fit
from edge_runtime.engines.least_versions import installed_versions
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.protocol.presence import BLOB_MIRROR, FROZEN_FRONT, FROZEN_TRAINING, Birth, Capability
from edge_runtime.protocol.step_rule import SWITCHES

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.protocol.held_out import HeldOut
    from edge_runtime.store.journal import Journal


@dataclass
class Session:
    """What a device's announcements say of the process that makes them.

    Attributes:
        boot_id: new with every start of the process.
        connections: connections to a broker since the start.
        epoch: of the last hello that was heard; None: none was.
    """

    boot_id: str
    connections: int = 0
    epoch: str | None = None


METHODS = ["spzo", *SWITCHES, FROZEN_FRONT, TOP_LEVELS, FROZEN_TRAINING, BLOB_MIRROR]
"""What a device can train: the step, with every switch of protocol/step_rule.py; what came later is named by itself."""


def make_birth(
    config: EdgeConfig,
    session: Session,
    journal: Journal,
    loaded: LoadedBundle | None,
    bytes_free: int | None,
    address: str | None = None,
    held_out: HeldOut | None = None,
) -> Birth:
    """Return the birth message of a device as it is now.

    Args:
        config: the device's configuration.
        session: the process's start, its connection, and the server's epoch.
        journal: its current bundle and adapter.
        loaded: the loaded bundle; None: none has been needed yet.
        bytes_free: free memory; None: not known.
        address: this machine's address on the connection to the broker; None: not known.
        held_out: how well its own model did on held-out rows; None: not known.
    """
    return Birth(
        device=config.name,
        boot_id=session.boot_id,
        connection=session.connections,
        epoch=session.epoch,
        covey_version=__version__,
        python_version=platform.python_version(),
        machine=platform.machine(),
        runtimes=installed_versions(config.engine),
        methods=METHODS,
        rows=loaded.known_rows if loaded is not None else None,
        bundle_sha256=journal.bundle_sha256,
        adapter_sha256=journal.adapter_sha256,
        capability=capability(config, loaded, bytes_free),
        tags=config.tags,
        hostname=socket.gethostname()[:255] or None,
        address=address,
        execution_providers=_not_usual(config.execution_providers),
        held_out=msgspec.UNSET if held_out is None else held_out,
        predicts=config.predict.answer_server or msgspec.UNSET,
    )


def _not_usual(providers: tuple[str, ...]) -> list[str] | msgspec.UnsetType:
    return msgspec.UNSET if providers == CPU_ONLY else list(providers)


def capability(config: EdgeConfig, loaded: LoadedBundle | None, bytes_free: int | None) -> Capability:
    """Return how the device can train: what its owner allows, and which levels fit into its memory.

    Args:
        config: the device's configuration.
        loaded: the loaded bundle; None: the levels are not known yet.
        bytes_free: free memory; None: not known, every level fits.
    """
    if not config.backpropagates:
        return Capability(kind="forward-only", levels=[], bytes_free=bytes_free)
    if loaded is None:
        return Capability(kind="backprop", levels=None, bytes_free=bytes_free)
    manifest, runtime = loaded.bundle.manifest, config.engine
    if manifest.levels and not manifest.levels_for(runtime):
        return Capability(kind="forward-only", levels=[], bytes_free=bytes_free)
    needs = [level_need(manifest, level, runtime) for level in manifest.levels]
    fit = levels_that_fit(needs, bytes_free, rows=1)
    return Capability(kind="backprop", levels=[need for need in needs if need.level in fit], bytes_free=bytes_free)
