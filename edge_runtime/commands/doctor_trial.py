"""The check of ``covey-edge doctor`` on bundles that this device has tried: a failure is tried again, and said."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.commands.finding import Finding, problem
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.trial import try_bundle
from edge_runtime.errors import CoveyError, StorageError
from edge_runtime.store.trials import read_trials

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.store.trials import Failure


def trial_finding(config: EdgeConfig) -> Finding:
    """Say whether the last bundle passed its trial; one that failed is tried again now, in a child process."""
    root = Path(config.state_dir)
    try:
        trials = read_trials(root)
    except StorageError as error:
        return Finding("trial", "warning", error.what, error.hint)
    if trials.failed is not None:
        return _again(root, trials.failed, Engines(config.engine, config.threads, config.execution_providers))
    if not trials.passed:
        return Finding("trial", "absent", "no bundle has been tried here yet", "nothing: the first plan does it")
    last = trials.passed[-1]
    found = f"bundle {last.bundle_sha256[:12]} passed on {last.runtime} {last.runtime_version}"
    return Finding("trial", "ok", found, "", {"bundle_sha256": last.bundle_sha256})


def _again(root: Path, failed: Failure, engines: Engines) -> Finding:
    name = failed.combination.bundle_sha256
    values = {"bundle_sha256": name, "failed": failed.what}
    places = (root / "bundles" / name, root / "bundles" / f"{name}.partial")
    place = next((path for path in places if (path / MANIFEST_FILE).is_file()), None)
    if place is None:
        return Finding("trial", "warning", failed.what, failed.hint, values, failed.exit_code)
    try:
        try_bundle(place, engines)
    except CoveyError as error:
        return problem("trial", error, values)
    found = f"bundle {name[:12]} passes now on {engines.name}; before: {failed.what}"
    return Finding("trial", "ok", found, "", values)
