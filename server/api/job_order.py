"""A job, ordered on a page from the text of its job.toml."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from edge_runtime.errors import ConfigError
from server.api.orders import YES, Field, Outcome, Prospect
from server.queue.job_text import at_line, job_table
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.queue.operations import Operations
    from server.storage.audit_records import Asker

_MOST_TEXT = 50_000
_NAMES = 20
"""Devices that are named."""
_EXAMPLE = """\
name = "first-job"
eval_file = "/srv/covey/heldout.jsonl"   # on the server's machine
rounds = 20
"""
_LARGEST_PRIORITY = 1_000_000
_WAITS = ("queued", "running", "paused", "finished")
"""States of jobs after which another one can come."""


class NewJob:
    """See Order.

    Args:
        operations: does it.
    """

    title, back = "Submit a job", "/ui/jobs"
    check_button, button = "Check the job", "Submit the job"

    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    def fields(self) -> list[Field]:
        """See Order."""
        operations = self._operations
        bundles = [choice for choice in operations.rollouts.choices() if choice.kind == "bundle"]
        jobs = [job.name for job in queries.jobs_of(operations.ledger, operations.fleet)[::-1] if job.state in _WAITS]
        return [
            Field("text", "job.toml", "text", _EXAMPLE, "Paths are absolute, on the server's machine.",
                  most=_MOST_TEXT, is_required=True),
            Field("bundle", "Bundle", "choice", options=[(choice.source, choice.label) for choice in bundles]),
            Field("path", "Or the path of another bundle", help="An absolute path on the server's machine.", most=4000),
            Field("after", "After the job", "choice", options=[(name, name) for name in jobs]),
            Field("priority", "Priority", value="0", help="A whole number; the larger comes first.", is_required=True),
            Field("absent", "Its devices and tags may come later", "box"),
        ]  # fmt: skip

    def look(self, given: Mapping[str, str]) -> Prospect:
        """See Order."""
        text, (bundle, after, priority) = given["text"], _beside(given)
        try:
            fitted, devices = self._operations.checked_job(
                job_table(text), bundle, after, allow_absent=given["absent"] == YES
            )
        except ConfigError as error:
            raise at_line(error, text) from error
        job, model = fitted.job, fitted.manifest.model
        more = f" and {len(devices) - _NAMES} more" if len(devices) > _NAMES else ""
        effects = [
            f"Job {job.name} is queued with priority {priority}{'' if after is None else f', after job {after}'}.",
            f"It trains {model.name} ({model.layers} layers, {fitted.manifest.task.kind}).",
            f"Its bundle is {fitted.bundle_sha256[:12]} in {bundle}.",
            f"It runs {job.rounds} rounds of {job.steps} local steps with {job.batch_size} rows each.",
            f"Its method is {job.method}, with the split at layer {fitted.split}.",
            f"It is for {job.devices}: {', '.join(devices[:_NAMES]) or 'no device that is known'}{more}.",
            f"The server evaluates adapters on the rows of {job.eval_file}.",
        ]
        return Prospect(f"Submit job {job.name}?", effects, job.name)

    def do(self, given: Mapping[str, str], asker: Asker) -> Outcome:
        """See Order."""
        bundle, after, priority = _beside(given)
        name = self._operations.submit(
            job_table(given["text"]), bundle, after, priority, allow_absent=given["absent"] == YES, asker=asker
        )
        return Outcome(f"/ui/jobs/{quote(name, safe='')}")


def _beside(given: Mapping[str, str]) -> tuple[str, str | None, int]:
    """Return bundle, the job before, and priority."""
    bundle, path = given["bundle"], given["path"]
    if bool(bundle) == bool(path):
        what = "two bundles are given" if bundle else "no bundle is given"
        raise ConfigError(what, "choose one that the server knows, or write the path of one")
    try:
        priority = int(given["priority"])
    except ValueError as error:
        raise ConfigError(f"the priority {given['priority']!r} is no whole number", "write one, as 0") from error
    if abs(priority) > _LARGEST_PRIORITY:
        raise ConfigError(f"the priority {priority} is beyond {_LARGEST_PRIORITY}", "write a smaller one, as 10")
    return bundle or path, given["after"] or None, priority
