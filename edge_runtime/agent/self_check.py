"""What a version of Covey checks before it takes over a device: it reads what the device has, and changes nothing."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

import edge_runtime
from edge_runtime.bundle.folder import open_named
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.trial import try_bundle
from edge_runtime.errors import ConfigError, cause_of
from edge_runtime.store.journal import JOURNAL_FILE, read_journal
from edge_runtime.store.trials import read_trials

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.engines.golden import Parity


def load_everything() -> int:
    """Import every module of the device side: a file that is missing or torn is found now, not in a round.

    Returns:
        How many there are.

    Raises:
        ConfigError: one does not load; says which.
    """
    count = 0
    for module in pkgutil.walk_packages(edge_runtime.__path__, f"{edge_runtime.__name__}."):
        try:
            importlib.import_module(module.name)
        except Exception as error:
            raise ConfigError(
                f"{module.name} does not load: {cause_of(error)}", "this installation is not whole: install it again"
            ) from error
        count += 1
    return count


def check_takeover(config: EdgeConfig) -> tuple[str | None, Parity | None]:
    """Check that this version reads the device's state, and that its current bundle gives PyTorch's values.

    The bundle is run in a child process. A device that has no bundle yet has nothing to run.

    Returns:
        The current bundle's name, and its largest differences from PyTorch; None: there is no bundle.

    Raises:
        JournalDamagedError, StorageError: this version cannot read the journal or the trials.
        BundleError: it cannot open the current bundle, or its golden vectors differ.
        ConfigError: a library is missing, or ended the child.
    """
    root = Path(config.state_dir)
    journal = read_journal(root / JOURNAL_FILE)
    read_trials(root)
    name = journal.bundle_sha256
    if name is None or not (root / "bundles" / name).is_dir():
        return None, None
    bundle = open_named(root / "bundles" / name, name)
    return name, try_bundle(bundle.path, Engines(config.engine, config.threads, config.execution_providers))
