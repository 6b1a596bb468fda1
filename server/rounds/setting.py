"""What a job runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.manifest import Manifest
    from edge_runtime.values import FloatVector
    from server.evaluation import Evaluation
    from server.job.job import Job
    from server.web.uploads import Uploads


@dataclass(frozen=True)
class Setting:
    """What a job runs in; nothing of it changes.

    Attributes:
        fleet: name of the fleet.
        job: the job, its split filled in.
        manifest: the bundle's manifest.
        bundle_sha256: the bundle's name.
        blob_url: where devices fetch blobs.
        uploads: what devices may send.
        evaluate: evaluates an adapter on the held-out rows; called from another thread.
        clock: monotonic seconds.
    """

    fleet: str
    job: Job
    manifest: Manifest
    bundle_sha256: str
    blob_url: str
    uploads: Uploads
    evaluate: Callable[[FloatVector], Evaluation]
    clock: Callable[[], float]
