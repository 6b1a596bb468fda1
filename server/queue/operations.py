"""What an operator can ask of a running server. Each operation is checked, done in the server's thread, and audited."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.errors import ConfigError
from server.advice.left_open import completed
from server.errors import JobError, NoSuchJobError
from server.job.behind_needs import fit_opened
from server.job.job import job_of
from server.job.selector import check_there, parse_selector
from server.queue.acts import Acts
from server.queue.prediction_operations import PredictionOperations
from server.queue.rollout_operations import RolloutOperations
from server.queue.trust_operations import TrustOperations
from server.storage import device_queries, queries
from server.storage.discard import discard_job

if TYPE_CHECKING:
    from server.fleet.device_logs import ReceivedLine
    from server.job.fitted import FittedJob
    from server.queue.supervisor import Supervisor
    from server.rollouts.rollouts import Rollouts
    from server.storage.audit_records import Asker
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger
    from server.storage.records import JobRecord


class Operations:
    """The operator's side of one server. Safe to use from several threads.

    Args:
        supervisor: runs the jobs.
        ledger: the ledger.
        blobs: adapters and logs of the jobs.
        state_dir: the server's state directory.
        rollouts: carries rollouts out.

    Attributes:
        trust: what can be asked about identities.
        rollouts: what can be asked about rollouts.
        predictions: what can be asked of a device's model.
    """

    def __init__(
        self, supervisor: Supervisor, ledger: Ledger, blobs: BlobStore, state_dir: Path, rollouts: Rollouts
    ) -> None:
        self.supervisor, self.ledger = supervisor, ledger
        self.fleet = supervisor.coordinator.roster.fleet
        self._blobs, self._state_dir = blobs, state_dir
        self._acts = Acts(ledger, supervisor.mailbox)
        self.trust = TrustOperations(ledger, state_dir, self.fleet, self._acts, supervisor.coordinator)
        self.predictions = PredictionOperations(supervisor.coordinator, ledger, self.fleet)
        self.rollouts = RolloutOperations(ledger, blobs, state_dir, self.fleet, self._acts, rollouts)

    def note(self, asker: Asker, action: str) -> None:
        """Enter in the audit what an operator has done that changes no job, device or rollout: a sign-in."""
        self._acts.note(asker, action)

    def _job(self, name: str) -> JobRecord:
        record = queries.find_job(self.ledger, name)
        if record is None:
            raise NoSuchJobError(name)
        return record

    # -- jobs ---------------------------------------------------------------------------------------------------

    def checked_job(
        self, table: dict[str, Any], bundle: str, after: str | None, *, allow_absent: bool
    ) -> tuple[FittedJob, list[str]]:
        """Return a job that could be submitted, and the known devices that it is for; submit says what is raised."""
        fitted = _fitted(table, bundle)
        self.ledger.check_job_is_new(fitted.job.name)
        selector, known = parse_selector(fitted.job.devices), self.supervisor.tags()
        if not allow_absent:
            check_there(selector, known, self.fleet)
        if after is not None:
            self._job(after)
        return fitted, sorted(name for name, tags in known.items() if selector.fits(name, tags))

    def submit(
        self, table: dict[str, Any], bundle: str, after: str | None, priority: int, *, allow_absent: bool, asker: Asker
    ) -> str:
        """Enter a job in the queue; return its name.

        Args:
            table: the content of job.toml, with an absolute ``eval_file``.
            bundle: absolute path of the bundle on this machine.
            after: the job that must be finished first; None: none.
            priority: a larger one comes first.
            allow_absent: whether its devices and tags may be unknown.
            asker: who asks.

        Raises:
            ConfigError: the job is wrong, does not fit the bundle, or names devices that nobody has seen.
            BundleError: there is no bundle, or it is damaged.
            JobError: its name is taken, or there is no job to come after.
        """
        asked = table.get("name")
        subject = asked if isinstance(asked, str) else "?"
        with self._acts.entry(asker, "submit", subject, f"bundle {bundle}") as number:
            fitted, _ = self.checked_job(table, bundle, after, allow_absent=allow_absent)
            job = fitted.job

            def enter() -> None:
                self.ledger.submit_job(
                    job.name,
                    self.fleet,
                    fitted.bundle_sha256,
                    bundle,
                    msgspec.to_builtins(job),
                    priority=priority,
                    after=after,
                )
                self.supervisor.look_soon()

            self._acts.turn(number, asker, job.name, enter)
        return job.name

    def pause(self, name: str, asker: Asker) -> str:
        """Pause a job after its open round; return its state, ``pausing`` or ``paused``."""

        def wish() -> str:
            self._expect(name, ("running", "queued"), "pause")
            return self.supervisor.pause(name)

        return str(self._acts.do(asker, "pause", name, wish))

    def resume(self, name: str, asker: Asker) -> None:
        """Queue a job again that was paused or stopped, or has failed; it goes on after its closed rounds."""

        def wish() -> None:
            if self.supervisor.go_on(name):
                return
            self._expect(name, ("paused", "stopped", "failed"), "resume")
            self.ledger.job_is(name, "queued", None)
            self.supervisor.look_soon()

        self._acts.do(asker, "resume", name, wish)

    def stop(self, name: str, asker: Asker) -> None:
        """Stop a job at once."""

        def wish() -> None:
            self._expect(name, ("running", "queued", "paused"), "stop")
            self.supervisor.stop(name)

        self._acts.do(asker, "stop", name, wish)

    def delete(self, name: str, asker: Asker) -> None:
        """Delete a job that is not at work, with its rounds, its adapters and its result."""

        def wish() -> None:
            self._expect(name, ("queued", "paused", "stopped", "failed", "finished"), "delete")
            discard_job(self.ledger, self._blobs, self._state_dir, name)
            self.supervisor.feed.forget(name)

        self._acts.do(asker, "delete", name, wish)

    def _expect(self, name: str, states: tuple[str, ...], verb: str) -> None:
        state = self._job(name).state
        if state not in states:
            raise JobError(
                f"cannot {verb} job {name}: it is {state}", f"{verb} works for jobs that are {', '.join(states)}"
            )

    # -- devices ------------------------------------------------------------------------------------------------

    def tag(self, device: str, tag: str, asker: Asker) -> None:
        """Give a device a tag; the device may be one that has never been seen."""

        def wish() -> None:
            self.ledger.tag_device(self.fleet, device, tag)
            self.supervisor.refresh_tags()

        self._acts.do(asker, "tag", device, wish, tag)

    def untag(self, device: str, tag: str, asker: Asker) -> None:
        """Take a tag from a device.

        Raises:
            ConfigError: the operator has not given it this tag.
        """

        def wish() -> None:
            if tag not in device_queries.tags_of(self.ledger, self.fleet).get(device, ()):
                raise ConfigError(f"{device} has no tag {tag} from the operator", "tags of edge.toml are removed there")
            self.ledger.untag_device(self.fleet, device, tag)
            self.supervisor.refresh_tags()

        self._acts.do(asker, "untag", device, wish, tag)

    def ask_for_log(self, device: str, lines: int, follow_s: float) -> None:
        """Ask a device for its last lines and, for ``follow_s`` seconds, for new ones.

        Raises:
            ConfigError: the device is not here.
        """
        known = self.supervisor.coordinator.devices.get(device)
        if known is None or not known.is_here:
            state = "never seen" if known is None else known.state
            raise ConfigError(f"{device} is not here: {state}", "see: covey device list")
        self.supervisor.coordinator.ask_for_log(device, lines, follow_s)

    def log_lines(self, device: str, after: int) -> list[ReceivedLine]:
        """Return the lines that a device has sent, after a line's number."""
        return self.supervisor.coordinator.logs.lines(device, after)

    def forget(self, device: str, asker: Asker) -> None:
        """Forget a device that is gone: its entry, its tags and its profiles; what it did in jobs stays.

        Its certificates are revoked, so that it can come back with a new token only.

        Raises:
            ConfigError: it is here now, or was never seen.
        """

        def wish() -> None:
            known = self.supervisor.coordinator.devices.get(device)
            if known is not None and known.is_here:
                raise ConfigError(f"{device} is here now", "switch it off first, or give it another name in edge.toml")
            self.rollouts.forget(device)
            is_known = self.supervisor.coordinator.roster.forget(device)
            if not self.trust.forget(device) and not is_known:
                raise ConfigError(f"fleet {self.fleet} has no device {device}", "see: covey device list")
            self.supervisor.refresh_tags()

        self._acts.do(asker, "forget", device, wish)


def _fitted(table: dict[str, Any], path: str) -> FittedJob:
    """Return a submitted job with its bundle, whose files are hashed when the job begins."""
    job = job_of(table)
    if not Path(path).is_absolute() or not Path(job.eval_file).is_absolute():
        raise ConfigError("bundle and eval_file need absolute paths on the server's machine", "give absolute paths")
    if not Path(job.eval_file).exists():
        raise ConfigError(
            f"there is no file {job.eval_file} on the server's machine", "put the held-out rows there (eval_file)"
        )
    bundle = open_bundle(Path(path))
    return fit_opened(completed(table, bundle.manifest, bundle.sha256), bundle)
