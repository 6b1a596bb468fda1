"""Takes releases between two plans: fetch, check, examine, and switch by one rename; what was in use stays until then.

A release that fails leaves everything as it was, and is not tried again. One that a network keeps from being fetched is
no failure: it is tried again, until the server asks for something else. The outcome is on disk before it is said.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import msgspec

from edge_runtime.agent.trainer import trust_place
from edge_runtime.bundle.adapter import check_adapter, map_adapter
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.layout import total_size
from edge_runtime.engines.choose import Engines
from edge_runtime.errors import BundleError, ConfigError, CoveyError, NetworkError, as_covey_error, as_exception
from edge_runtime.network.fetch import Fetcher, blob_base
from edge_runtime.network.mirror import Mirrors
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.side_messages import Release, Released
from edge_runtime.protocol.topics import topic_for
from edge_runtime.releases.require import require_release
from edge_runtime.store.bundles import install_bundle
from edge_runtime.store.versions import (
    Outcome,
    Version,
    gone_back,
    in_use,
    mended_versions,
    released_file,
    switched,
    write_versions,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.config import DataConfig
    from edge_runtime.engines.examine import Examined
    from edge_runtime.network.transport import Transport
    from edge_runtime.protocol.side_messages import ReleaseKind
    from edge_runtime.store.store import Store
    from edge_runtime.store.versions import Versions

_LOG = logging.getLogger(__name__)
_AGAIN_S = 30.0
"""Seconds between two attempts to fetch a release."""
_LONGEST_REASON = 2000


class ReplacesCovey(Protocol):
    """Replaces the version of Covey that runs; edge_runtime.update does it."""

    def switch(self, wheel: Path, sha256: str) -> None:
        """Install a wheel and have it started; raises CoveyError where it does not come up."""

    def back(self, sha256: str) -> None:
        """Go back from a wheel to the version before, if it is in use."""


class Releases:
    """The releases of one device.

    Args:
        config: the device's configuration.
        store: its state directory.
        transport: its connection.
        pause: waits before a transfer is tried again, in seconds; what it raises ends the transfer.
        clock: monotonic seconds.
        contained: whether what is new is tried in a child process.

    Attributes:
        covey: replaces Covey itself; None: this device takes no wheels.
    """

    def __init__(
        self,
        config: EdgeConfig,
        store: Store,
        transport: Transport,
        pause: Callable[[float], None],
        clock: Callable[[], float],
        *,
        contained: bool,
    ) -> None:
        self._config, self._store, self._transport = config, store, transport
        self._pause, self._clock, self._contained = pause, clock, contained
        self._trust, self._mirrors = trust_place(config), Mirrors(config.tls)
        self.covey: ReplacesCovey | None = None
        self._waiting: Release | None = None
        self._again_at = 0.0

    # -- what the agent calls -----------------------------------------------------------------------------------

    def take(self, release: Release) -> None:
        """Do what a release says. Errors are its failure, and said to the server; nothing is raised but StorageError.

        Raises:
            StorageError: the outcome cannot be written; the server asks again.
        """
        self._waiting = None
        slot = _slot(release)
        last = mended_versions(self._store).outcomes.get(slot)
        if last is not None and _answers(last, release):
            self._say(last)
            return
        if release.step == "switch":
            self._send(release.rollout, release.kind, "fetching")
        try:
            versions = self._do(release)
            outcome = Outcome(
                release.rollout,
                release.kind,
                release.step,
                release.sha256,
                "switched" if release.step == "switch" else "rolled-back",
            )
        except BaseException as raised:  # noqa: BLE001 as for a plan: whatever it is, the device goes on with what it has
            caught = as_exception(raised)
            error = as_covey_error(caught)
            if isinstance(error, NetworkError):
                self._wait(release, error)
                return
            _LOG.error("release %d failed, what is in use stays: %s", release.rollout, error)
            reason = error.public[:_LONGEST_REASON]
            versions = mended_versions(self._store)
            code = error.exit_code
            outcome = Outcome(release.rollout, release.kind, release.step, release.sha256, "failed", code, reason)
        outcomes = {**versions.outcomes, slot: outcome}
        self._waiting, self._again_at = release, self._clock() + _AGAIN_S  # where the disk is full, it is tried again
        write_versions(self._store, msgspec.structs.replace(versions, outcomes=outcomes))
        self._waiting = None
        _LOG.info("release %d of a new %s: %s", release.rollout, release.kind, outcome.outcome)
        self._say(outcome)

    def turn(self) -> None:
        """Try a release again that the network has kept from being fetched, if it is time."""
        if self._waiting is not None and self._clock() >= self._again_at:
            self.take(self._waiting)

    def announced(self) -> None:
        """Say again what became of the last releases: the server may not have heard it."""
        for outcome in mended_versions(self._store).outcomes.values():
            self._say(outcome)

    # -- doing it -----------------------------------------------------------------------------------------------

    def _do(self, release: Release) -> Versions:
        """Return the versions after a release; nothing but fetched files is on disk of it yet."""
        versions = mended_versions(self._store)
        if release.kind == "wheel":
            self._wheel(release)
            return versions
        if release.step == "back":
            current = versions.current
            return versions if current is None or current.rollout != release.rollout else gone_back(versions)
        self._store.make_folders()
        engines = Engines(self._config.engine, self._config.threads, self._config.execution_providers)
        bundle_sha256 = release.sha256 if release.kind == "bundle" else release.bundle_sha256
        if bundle_sha256 is None:
            raise BundleError("the release of an adapter names no bundle", "update the server")
        fetcher = self._fetcher(release)
        if release.kind == "adapter":
            self._require("adapter", release.sha256, fetcher)
        bundle = install_bundle(
            self._store, fetcher, bundle_sha256, engines, contained=self._contained, trust=self._trust
        )
        adapter = None if release.kind == "bundle" else self._adapter(release, bundle, fetcher)
        self._compare(bundle, adapter, engines)
        return switched(versions, Version(bundle_sha256, None if adapter is None else release.sha256, release.rollout))

    def _require(self, kind: ReleaseKind, sha256: str, fetcher: Fetcher) -> bool:
        """Check, before anything of it is fetched, that the fleet has signed it; return whether the device has keys."""
        trust = self._trust
        return trust is not None and (
            require_release(trust.folder, trust.fleet, kind, sha256, fetcher.beside) is not None
        )

    def _fetcher(self, release: Release) -> Fetcher:
        base = blob_base(release.blob_url, self._transport.broker_host, self._config.server_url)
        return Fetcher(base, self._pause, tls=self._config.tls, mirror=self._mirrors.at(release.blob_mirror))

    def _adapter(self, release: Release, bundle: Bundle, fetcher: Fetcher) -> Path:
        size = total_size(bundle.manifest.parameters)
        if release.size_bytes != 4 * size:
            raise BundleError(
                f"the adapter has {release.size_bytes} bytes, the bundle needs {4 * size}", "roll out its own bundle"
            )
        path = released_file(self._store, release.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            fetcher.file(release.sha256, release.size_bytes, path)
        try:
            check_adapter(map_adapter(path, size), release.sha256)
        except BundleError:
            path.unlink(missing_ok=True)  # where this version is in use, its file is as damaged
            raise
        return path

    def _compare(self, bundle: Bundle, adapter: Path | None, engines: Engines) -> None:
        """Examine the new version; where the owner has own rows, compare it with the one in use.

        Raises:
            BundleError: it gives no numbers, or is less accurate than is allowed.
        """
        rules = self._config.updates
        rows = self._config.own_rows
        found = self._examined(bundle, adapter, rows, engines)
        before = None if rows is None else self._accuracy_in_use(rows, engines)
        if before is None or found.accuracy is None:
            return
        _LOG.info("accuracy on %d own rows: %.3f, before: %.3f", found.rows, found.accuracy, before)
        if found.accuracy < before - rules.largest_accuracy_loss:
            raise BundleError(
                f"accuracy on this device's own {found.rows} rows falls from {before:.3f} to {found.accuracy:.3f}, "
                f"{rules.largest_accuracy_loss:g} is allowed",
                "look at the new version; or set [updates] largest_accuracy_loss in edge.toml",
            )

    def _examined(self, bundle: Bundle, adapter: Path | None, rows: DataConfig | None, engines: Engines) -> Examined:
        from edge_runtime.engines.examine import examine  # noqa: PLC0415 idle devices stay small

        return examine(bundle, adapter, rows, engines, contained=self._contained)

    def _accuracy_in_use(self, rows: DataConfig, engines: Engines) -> float | None:
        used = in_use(self._store)
        if used is None:
            return None
        folder, adapter, _ = used
        try:
            found = self._examined(open_bundle(folder), adapter, rows, engines)
        except CoveyError as error:  # what is in use does not run: any version that does is better
            _LOG.warning("what is in use cannot be examined, so the new version is compared with nothing: %s", error)
            return None
        return found.accuracy

    def _wheel(self, release: Release) -> None:
        if self.covey is None:
            raise ConfigError(
                "this device takes no new versions of Covey", "start it with its launcher: covey-edge update setup"
            )
        if release.step == "back":
            self.covey.back(release.sha256)
            return
        if release.file_name is None:
            raise ConfigError("the release of a wheel has no file name", "update the server")
        path = self._store.root / "wheels" / release.sha256 / release.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        fetcher = self._fetcher(release)
        if not self._require("wheel", release.sha256, fetcher):
            raise ConfigError(
                "this device runs new versions of Covey only where its fleet signs them, and it has no release keys",
                "covey fleet init on the server, and covey-edge join; or by hand: covey-edge update install WHEEL",
            )
        fetcher.file(release.sha256, release.size_bytes, path)
        self.covey.switch(path, release.sha256)

    # -- saying it ----------------------------------------------------------------------------------------------

    def _wait(self, release: Release, error: NetworkError) -> None:
        _LOG.warning("release %d waits: %s; trying again in %g s", release.rollout, error.what, _AGAIN_S)
        self._waiting, self._again_at = release, self._clock() + _AGAIN_S
        self._send(release.rollout, release.kind, "fetching", error.exit_code, error.public)

    def _say(self, outcome: Outcome) -> None:
        self._send(outcome.rollout, outcome.kind, outcome.outcome, outcome.code, outcome.reason)

    def _send(self, rollout: int, kind: str, outcome: str, code: int = 0, reason: str = "") -> None:
        said = Released(
            rollout=rollout,
            device=self._config.name,
            kind=kind,  # type: ignore[arg-type]
            outcome=outcome,  # type: ignore[arg-type]
            code=code,
            reason=reason[:_LONGEST_REASON],
        )
        self._transport.publish(topic_for(self._config.fleet, self._config.name, "released"), encode_message(said))


def _slot(release: Release) -> str:
    return "covey" if release.kind == "wheel" else "model"


def _answers(last: Outcome, release: Release) -> bool:
    asked = (release.rollout, release.kind, release.step, release.sha256)
    return (last.rollout, last.kind, last.step, last.sha256) == asked
