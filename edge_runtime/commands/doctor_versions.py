"""The check of ``covey-edge doctor`` on versions: is what is installed new enough for the bundles it has met?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.commands.finding import Finding, problem
from edge_runtime.engines.least_versions import check_versions, installed_versions
from edge_runtime.errors import ConfigError, CoveyError, StorageError
from edge_runtime.store.too_old import read_too_old

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle


def versions_finding(config: EdgeConfig, bundle: Bundle | None) -> Finding:
    """Say what the server or the current bundle finds too old.

    Args:
        config: the device's configuration.
        bundle: the bundle of the last round; None: there is none.
    """
    try:
        versions = installed_versions(config.engine)
        values = {"versions": versions}
        note = read_too_old(Path(config.state_dir), versions)
        if bundle is not None:
            check_versions(bundle.manifest, config.engine)
    except StorageError as error:
        return Finding("versions", "warning", error.what, error.hint)
    except CoveyError as error:
        return problem("versions", error)
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    if note is not None and (bundle is None or bundle.sha256 != note.bundle_sha256):
        what, _, hint = note.reason.partition("\n  what to do: ")
        found = f"no work of job {note.job} for this device: {what}"
        return Finding("versions", "problem", found, hint, values, ConfigError.exit_code)
    if bundle is None or bundle.manifest.needs is None:
        return Finding("versions", "ok", f"{listed}; no bundle is here that says what it needs", "", values)
    return Finding("versions", "ok", f"{listed}: new enough for bundle {bundle.sha256[:12]}", "", values)
