"""Whether what is installed on this machine is new enough for a bundle, asked before its graphs are fetched."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime.bundle.needs import advice, unmet_needs
from edge_runtime.engines.trial import runtime_version
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest, Runtime


def installed_versions(runtime: Runtime) -> dict[str, str]:
    """Return the versions of the libraries that training uses, by name; the runtime's comes first. None is loaded.

    Raises:
        ConfigError: the runtime is not installed.
    """
    return {runtime: runtime_version(runtime), **{name: metadata.version(name) for name in ("numpy", "tokenizers")}}


def check_versions(manifest: Manifest, runtime: Runtime) -> None:
    """Check that the installed runtime and tokenizers are new enough for a bundle.

    Raises:
        ConfigError: one is too old, or the runtime is not installed.
    """
    if manifest.needs is None:
        return
    unmet = unmet_needs(manifest.needs, runtime, installed_versions(runtime))
    if unmet:
        raise ConfigError("; ".join(map(str, unmet)), advice(unmet))
