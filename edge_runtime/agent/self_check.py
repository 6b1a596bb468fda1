"""What a version of Covey checks before it takes over a device: it reads what the device has, and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.folder import open_named
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.trial import try_bundle
from edge_runtime.store.journal import JOURNAL_FILE, read_journal
from edge_runtime.store.trials import read_trials

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.engines.golden import Parity


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
    return name, try_bundle(bundle.path, Engines(config.engine, config.threads))
