"""How many perturbed adapters a device measures in one call, and the graph that takes them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.stack import NoStack, adapters_that_fit, call_bytes
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
_WORTH = 2
"""A graph is loaded anew where this many times its adapters fit into memory."""


@dataclass(frozen=True)
class _Made:
    """The graph that is loaded: its split, the engine beside it, and the adapters of a call."""

    split: int
    engine: BundleEngine
    count: int
    stack: BundleBackStack


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
        self._made: _Made | None = None
        self._said: str | None = None

    def stack(self, loaded: LoadedBundle, split: int, rows: int, most: int) -> BackStack[Any] | None:
        """Return the back block for many adapters; None: one is run after the other.

        Args:
            loaded: the bundle, with its rows.
            split: the plan's split.
            rows: rows of a batch.
            most: the adapters that a step has at one activation: a call takes no more.

        Raises:
            CoveyError: see LoadedBundle.engine; or the bundle's stack graph is damaged.
        """
        if self._made is not None and self._made.split != split:
            self.close()  # before another engine is made: memory need not hold both
        engine = loaded.engine(split)
        count = self._count(loaded, split, rows, most) if isinstance(engine, BundleEngine) else 1
        if count == 1 or not isinstance(engine, BundleEngine):
            self.close()
            return None
        if self._made is None or (self._made.engine, self._made.count) != (engine, count):
            self.close()
            made = self._engines.make_back_stack(loaded.bundle, split, count)
            self._made = _Made(split, engine, count, made)
        return self._made.stack

    def close(self) -> None:
        """Forget the graph: other work needs the memory."""
        self._made = None

    def _count(self, loaded: LoadedBundle, split: int, rows: int, most: int) -> int:
        if self._wanted == 1 or most == 1:
            return 1
        found = self._engines.find_stack(loaded.bundle, split)
        if isinstance(found, NoStack):
            if self._wanted != "auto":
                self._say(f"adapters_per_call = {self._wanted} has no effect: {found.reason}")
            return 1
        free_bytes = self._free_bytes()
        if free_bytes is not None and self._made is not None:
            free_bytes += call_bytes(found, self._made.count, rows)  # without it, that would be free
        fit = min(most, adapters_that_fit(found, rows, free_bytes))
        if self._wanted == "auto":
            profile = self._profile(loaded.bundle.sha256)
            longest = max(len(tokens) for tokens in loaded.rows.tokens)
            count = 1 if profile is None else choose_adapters(profile, split, rows, longest, fit)
        else:
            count = self._kept(min(self._wanted, fit))
        if count > 1:
            fewer = f" (adapters_per_call = {self._wanted})" if self._wanted not in ("auto", count) else ""
            self._say(f"a call of the back block at split {split} takes {count} perturbed adapters{fewer}")
        return count

    def _kept(self, fit: int) -> int:
        """Return the number of the graph that is loaded where not much more would fit: loading it anew takes time."""
        made = None if self._made is None else self._made.count
        return made if made is not None and made <= fit < _WORTH * made else fit

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
