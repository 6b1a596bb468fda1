"""Reports: what a device answers to a plan, and what the server says to that."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.protocol.message_base import ProtocolMessage as _Message
from edge_runtime.protocol.plans import BlobRef
from edge_runtime.values import Count, Name, Sha256

Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e15)]


class PlanAccepted(_Message, frozen=True, tag="accepted", kw_only=True):
    """The device begins a round."""

    job: Name
    round: Count
    attempt: Count
    device: Name


class PlanRefused(_Message, frozen=True, tag="refused", kw_only=True):
    """The device cannot do a round; ``code`` is the exit code of the error, ``message`` says why."""

    job: Name
    round: Count
    attempt: Count
    device: Name
    code: int
    message: Annotated[str, msgspec.Meta(max_length=2000)]


class RoundReport(_Message, frozen=True, tag="report", kw_only=True):
    """The result of a round on one device: scalars, and what they cost.

    Attributes:
        adapter_sha256: hash of the adapter that the round started from, computed by the device.
        scalars: float32, little-endian, steps × scalars per step.
        examples: rows of private data on the device.
        loss: mean of all losses seen; it belongs to perturbed models on training rows; None in a private round.
        seconds: duration of the local steps.
        front_passes: runs of the front block; of a front that is run row by row, as many as its rows make batches; of a
            frozen front in a private round, ``steps``, whatever was run.
        back_passes: runs of the back block.
        front_seconds: time of these runs alone; 0 for a frozen front in a private round.
        back_seconds: time of these runs alone.
        link_bytes_per_s: speed of the last download that was large enough to tell; None: not known.
        replay_parameters_per_s: parameters × directions that the device replays per second; None: not known.
        blob_bytes: bytes fetched over HTTP for this round's adapter.
        front_hits: rows of the steps' batches whose front activation was kept; left out: the front is not frozen.
        front_misses: rows for which the front was run; left out as above.
    """

    job: Name
    round: Count
    attempt: Count
    device: Name
    adapter_sha256: Sha256
    scalars: Annotated[bytes, msgspec.Meta(max_length=96 * 1024)]
    examples: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    loss: float | None
    seconds: Seconds
    front_passes: Count
    back_passes: Count
    front_seconds: Seconds
    back_seconds: Seconds
    link_bytes_per_s: Rate | None
    replay_parameters_per_s: Rate | None
    blob_bytes: Count
    front_hits: Count | msgspec.UnsetType = msgspec.UNSET
    front_misses: Count | msgspec.UnsetType = msgspec.UNSET


class DeltaReport(_Message, frozen=True, tag="delta", kw_only=True):
    """The result of a round on a backprop device; see RoundReport for the other fields.

    The delta itself is uploaded once the server has answered ``upload``; then the same report is sent again.

    Attributes:
        delta: the movement of the shared layers, a safetensors file; see delta.py.
        layers: the layers in it, ascending.
        personal_layers: how many layers stayed on the device.
        level: the plan's level.
        loss: mean loss of the local steps, at a dropout level with the active layers only.
        peak_rss_bytes: largest resident memory of the process so far; None: not known.
        blob_bytes: bytes fetched over HTTP for this round's adapter.
        front_hits: rows of the steps' batches whose front activation was kept; left out: the front was not looked up.
        front_misses: rows for which the front was run; left out as above.
    """

    job: Name
    round: Count
    attempt: Count
    device: Name
    adapter_sha256: Sha256
    delta: BlobRef
    layers: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=4096)]], msgspec.Meta(max_length=4096)]
    personal_layers: Count
    level: Level
    examples: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    loss: float
    seconds: Seconds
    peak_rss_bytes: Count | None
    link_bytes_per_s: Rate | None
    replay_parameters_per_s: Rate | None
    blob_bytes: Count
    front_hits: Count | msgspec.UnsetType = msgspec.UNSET
    front_misses: Count | msgspec.UnsetType = msgspec.UNSET


class Synced(_Message, frozen=True, tag="synced", kw_only=True):
    """The device has an adapter: its hash, computed from its own parameters."""

    job: Name
    round: Count
    device: Name
    adapter_sha256: Sha256
    blob_bytes: Count


class ReportAck(_Message, frozen=True, tag="ack", kw_only=True):
    """The server's answer to a report. Only ``taken`` changed anything on the server.

    ``upload``: send the delta of this report, and then the report again.
    """

    job: Name
    round: Count
    attempt: Count
    outcome: Literal["taken", "upload", "duplicate", "late", "unknown", "invalid"]
    reason: str = ""


Report = RoundReport | DeltaReport
DeviceReport = PlanAccepted | PlanRefused | Report | Synced
