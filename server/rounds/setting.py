"""What a job runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.values import FloatVector
    from server.evaluation import Evaluation
    from server.job.fitted import FittedJob
    from server.web.uploads import Uploads


@dataclass(frozen=True)
class Setting:
    """What a job runs in; nothing of it changes.

    Attributes:
        fleet: name of the fleet.
        fitted: the job and its bundle.
        blob_url: where devices fetch blobs.
        uploads: what devices may send.
        evaluate: evaluates an adapter on the held-out rows; called from another thread.
        clock: monotonic seconds.
    """

    fleet: str
    fitted: FittedJob
    blob_url: str
    uploads: Uploads
    evaluate: Callable[[FloatVector], Evaluation]
    clock: Callable[[], float]
