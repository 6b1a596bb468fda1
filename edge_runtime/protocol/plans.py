"""Plans: what the server asks a device to do in a round, and the adapter that it starts from."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.message_base import ProtocolMessage as _Message
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.values import Count, MirrorUrl, Name, Sha256


class BlobRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something to fetch over HTTP: ``<blob_url>/<sha256>``."""

    sha256: Sha256
    size_bytes: Count


class AdapterRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An adapter, and the replay logs that lead to it.

    Attributes:
        file: the adapter file itself.
        log: a chain of replay logs that leads to it from ``log_base_sha256``; None if the file is cheaper.
        log_base_sha256: the adapter from which the log starts, which the device should have; None without a log.
        log_previous_sha256: the adapter before that one, if the log's momentum needs it too.
        moment: the moment beside the adapter, if the job's rule keeps one; left out in its first round.
        log_moment_sha256: the moment from which the log starts; left out where it starts in a job's first round.
    """

    file: BlobRef
    log: BlobRef | None
    log_base_sha256: Sha256 | None
    log_previous_sha256: Sha256 | None = None
    moment: BlobRef | msgspec.UnsetType = msgspec.UNSET
    log_moment_sha256: Sha256 | msgspec.UnsetType = msgspec.UNSET


class TrainPlan(_Message, frozen=True, tag="train", kw_only=True):
    """Train one round.

    Attributes:
        job: name of the job.
        job_seed: the seed from which all others are derived.
        round: index of the round, from 0.
        attempt: index of the attempt at the round, from 0.
        bundle_sha256: the bundle to train.
        adapter: the adapter to start from.
        rule: the step's rule.
        split: index of the back block's first layer.
        steps: local steps.
        batch_size: rows per step.
        mean_square: mean square of the last round's scalars; None in the first.
        privacy: how scalars are clipped and noised; None: they are not.
        deadline_s: seconds from receipt after which a report is not used.
        blob_url: base address of blobs; without a host (``http://:8080/blobs``) it is on the broker's host.
        blob_mirror: base address of a cache of the blobs, which is asked first; left out: there is none, or the device
            does not know the field (presence.BLOB_MIRROR).
    """

    job: Name
    job_seed: Annotated[int, msgspec.Meta(ge=0)]
    round: Count
    attempt: Count
    bundle_sha256: Sha256
    adapter: AdapterRef
    rule: StepRule
    split: Count
    steps: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    mean_square: Annotated[float, msgspec.Meta(ge=0)] | None
    privacy: Privacy | None
    deadline_s: Annotated[float, msgspec.Meta(gt=0)]
    blob_url: str
    blob_mirror: MirrorUrl | msgspec.UnsetType = msgspec.UNSET


class BackpropPlan(_Message, frozen=True, tag="backprop", kw_only=True):
    """Train one round with backpropagation; see TrainPlan for the other fields.

    Attributes:
        stld: how the layers of a dropout level are drawn, and the local steps.
        level: number of active layers (``bernoulli``: their mean), or a top level, which only a device that lists
            levels.TOP_LEVELS among its methods is given.
        frozen_split: the split before which nothing changes from round to round, so that the device may keep what the
            front gives for its rows; left out: the front may change. Only a device that lists presence.FROZEN_TRAINING
            among its methods is given it.
    """

    job: Name
    job_seed: Annotated[int, msgspec.Meta(ge=0)]
    round: Count
    attempt: Count
    bundle_sha256: Sha256
    adapter: AdapterRef
    stld: Stld
    level: Level
    deadline_s: Annotated[float, msgspec.Meta(gt=0)]
    blob_url: str
    frozen_split: Count | msgspec.UnsetType = msgspec.UNSET
    blob_mirror: MirrorUrl | msgspec.UnsetType = msgspec.UNSET


class SyncPlan(_Message, frozen=True, tag="sync", kw_only=True):
    """Take over an adapter without training. ``final`` says that the job is finished."""

    job: Name
    round: Count
    bundle_sha256: Sha256
    adapter: AdapterRef
    final: bool
    blob_url: str
    blob_mirror: MirrorUrl | msgspec.UnsetType = msgspec.UNSET


Plan = TrainPlan | BackpropPlan | SyncPlan
