"""How many perturbed adapters a device measures in one call, and the graph that takes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.stack import NoStack, adapters_that_fit
from edge_runtime.engines.bundle_engine import BundleEngine
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import ProfileError
from edge_runtime.profiling.stacks import choose_adapters
from edge_runtime.protocol.profile import PROFILE_FILE
from edge_runtime.protocol.profile_check import decode_profile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.agent.loaded_bundle import LoadedBundle
    from edge_runtime.engines.back_stack import BundleBackStack
    from edge_runtime.engines.engine import BackStack
    from edge_runtime.protocol.profile import Profile

_LOG = logging.getLogger(__name__)


class BackStacks:
    """Chooses the number of adapters of a call for a plan, and keeps the graph from round to round.

    With ``adapters_per_call = "auto"``, it is what the device's profile found to be quickest, and one at a time without
    such a profile. A number asks for it. Either way it is bounded by half of the free memory.

    Args:
        config: the device's configuration.
        state_dir: the device's state directory, in which ``profile.json`` is.
        free_bytes: returns the free memory; None: not known, then one adapter is run after the other.
    """

    def __init__(self, config: EdgeConfig, state_dir: Path, free_bytes: Callable[[], int | None]) -> None:
        self._wanted, self._free_bytes = config.forward.adapters_per_call, free_bytes
        self._profile_file = state_dir / PROFILE_FILE
        self._engines = Engines(config.engine, config.threads, config.execution_providers)
        self._made: tuple[BundleEngine, int, BundleBackStack] | None = None
        self._said: str | None = None

    def stack(self, loaded: LoadedBundle, split: int, rows: int) -> BackStack[Any] | None:
        """Return the back block for many adapters; None: one is run after the other.

        Args:
            loaded: the bundle, with its rows.
            split: the plan's split.
            rows: rows of a batch.

        Raises:
            CoveyError: see LoadedBundle.engine; or the bundle's stack graph is damaged.
        """
        engine = loaded.engine(split)
        count = self._count(loaded, split, rows) if isinstance(engine, BundleEngine) else 1
        if count == 1 or not isinstance(engine, BundleEngine):
            self.close()
            return None
        if self._made is None or self._made[0] is not engine or self._made[1] != count:
            self.close()
            self._made = (engine, count, self._engines.make_back_stack(loaded.bundle, split, count))
        return self._made[2]

    def close(self) -> None:
        """Forget the graph: other work needs the memory."""
        self._made = None

    def _count(self, loaded: LoadedBundle, split: int, rows: int) -> int:
        if self._wanted == 1:
            return 1
        found = self._engines.find_stack(loaded.bundle, split)
        if isinstance(found, NoStack):
            if self._wanted != "auto":
                self._say(f"adapters_per_call = {self._wanted} has no effect: {found.reason}")
            return 1
        fit = adapters_that_fit(found, rows, self._free_bytes())
        if self._wanted == "auto":
            profile = self._profile(loaded.bundle.sha256)
            longest = max(len(tokens) for tokens in loaded.rows.tokens)
            count = 1 if profile is None else choose_adapters(profile, split, rows, longest, fit)
        else:
            count = min(self._wanted, fit)
            if count < self._wanted:
                self._say(f"adapters_per_call = {self._wanted} is lowered to {count}, for which there is memory")
        if count > 1:
            self._say(f"a call of the back block at split {split} takes {count} perturbed adapters")
        return count

    def _profile(self, bundle_sha256: str) -> Profile | None:
        """Return the saved profile, if it was measured on this bundle, with these threads and providers."""
        try:
            profile = decode_profile(self._profile_file.read_bytes())
        except (OSError, ProfileError):
            return None  # the announcer says what is wrong with it
        measured = profile.measured
        if measured is None or profile.bundle.sha256 != bundle_sha256:
            return None
        providers = tuple(measured.execution_providers or CPU_ONLY)
        alike = providers == self._engines.providers and measured.threads == self._engines.operator_threads()
        return profile if alike else None

    def _say(self, text: str) -> None:
        """Log a choice once, not in every round."""
        if text != self._said:
            _LOG.info("%s", text)
            self._said = text
