"""The check of ``covey-edge doctor`` on execution providers: those that are configured are started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.commands.finding import Finding, problem
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.provider_trial import try_providers
from edge_runtime.errors import CoveyError

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig


def providers_finding(config: EdgeConfig) -> Finding:
    """Start the configured execution providers, as ``covey-edge run`` does before it takes work."""
    names = ", ".join(config.execution_providers)
    try:
        try_providers(Engines(config.engine, config.threads, config.execution_providers))
    except CoveyError as error:
        return problem("providers", error, {"execution_providers": list(config.execution_providers)})
    found = f"{names}: started, and used in this order"
    return Finding("providers", "ok", found, "", {"execution_providers": list(config.execution_providers)})
