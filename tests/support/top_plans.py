"""A plan of a backprop device that trains the last layer alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, BlobRef

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle


def top_plan(bundle: Bundle, **changes: Any) -> BackpropPlan:
    """Return a plan for the first round of a job, with changed fields."""
    plan = BackpropPlan(
        job="job",
        job_seed=0,
        round=0,
        attempt=0,
        bundle_sha256=bundle.sha256,
        adapter=AdapterRef(BlobRef("0" * 64, 4 * bundle.initial_adapter().size), None, None),
        stld=Stld(steps=4, batch_size=8, learning_rate=0.05),
        level="top:1",
        deadline_s=60.0,
        blob_url="http://unused",
    )
    return msgspec.structs.replace(plan, **changes)
