"""Every message between the server and a device. MessagePack on the wire, MQTT 3.1.1 features only.

Each message carries the protocol's version ``v`` and its tag ``type``. Payloads stay under 128 KB; large data (bundles,
adapters, long logs) goes over HTTP by sha256. The tests hold golden encodings of these structs: a change that alters
them needs a new version.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.errors import ProtocolError
from edge_runtime.files.versioned import VersionedFormat
from edge_runtime.protocol.held_out import HeldOut
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.message_base import ENVELOPE_BYTES, VERSION
from edge_runtime.protocol.message_base import ProtocolMessage as _Message
from edge_runtime.protocol.privacy import Privacy
from edge_runtime.protocol.profile import Profile
from edge_runtime.protocol.side_messages import Host, LogLines, LogRequest, Release, Released, ServerPresent, TooOld
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.values import Count, Name, Sha256

PROTOCOL_VERSION = VERSION
MAX_PAYLOAD_BYTES = 128 * 1024
"""Bytes of a payload as it travels, a signature's envelope included."""
LARGEST_MESSAGE_BYTES = MAX_PAYLOAD_BYTES - ENVELOPE_BYTES
"""Bytes of a message without its envelope."""


Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e15)]
Tags = Annotated[list[Name], msgspec.Meta(max_length=32)]
Epoch = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Capability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device can train.

    Attributes:
        kind: ``forward-only``, or ``backprop`` if its owner allows it (the device can then do both).
        levels: levels of its bundle that fit into its memory with one row at a time; None: it has no bundle yet.
        bytes_free: memory that its process can still get; None: not known.
    """

    kind: Literal["forward-only", "backprop"]
    levels: list[LevelNeed] | None
    bytes_free: Count | None


class Hello(_Message, frozen=True, tag="hello", kw_only=True):
    """The server is here; retained. Devices answer it with birth and state.

    Attributes:
        epoch: new with every start and every connection of the server. Only a birth and a state with it show that a
            device is here now: the broker may hold older ones of devices that are gone.
        covey_version: version of Covey on the server.
    """

    epoch: Epoch
    covey_version: str


class Birth(_Message, frozen=True, tag="birth", kw_only=True):
    """A device announces itself; retained.

    Attributes:
        boot_id: new with every start of the process.
        connection: number of connections to a broker since that start, from 1.
        epoch: of the last hello that the device has heard; None: it has heard none.
        tags: what jobs can name the device by, beside its name.
        hostname: of its machine; None: not known.
        address: of its machine on the connection to the broker; None: not known.
        execution_providers: what ONNX Runtime runs the graphs on, as in edge.toml; left out: the processor.
        held_out: how well its own model did on held-out rows; left out: it has none, or has not measured it yet.
    """

    device: Name
    boot_id: str
    connection: Count
    epoch: Epoch | None
    covey_version: str
    python_version: str
    machine: str
    runtimes: dict[str, str]
    methods: list[str]
    rows: Count | None
    bundle_sha256: Sha256 | None
    adapter_sha256: Sha256 | None
    capability: Capability
    tags: Tags = msgspec.field(default_factory=list)
    hostname: Host | None = None
    address: Host | None = None
    execution_providers: Tags | msgspec.UnsetType = msgspec.UNSET
    held_out: HeldOut | msgspec.UnsetType = msgspec.UNSET


class DeviceState(_Message, frozen=True, tag="state", kw_only=True):
    """What a device is doing; retained. ``lost`` is the last will, sent by the broker.

    Attributes:
        boot_id: see Birth.
        epoch: see Birth; None also in the last will, which is made before anything is heard.
        ineligible: why its owner's rules or its rows keep it from training now; None: they do not.
    """

    state: Literal["online", "busy", "offline", "lost"]
    boot_id: str
    epoch: Epoch | None = None
    ineligible: Annotated[str, msgspec.Meta(max_length=1000)] | None = None


class ProfileMessage(_Message, frozen=True, tag="profile", kw_only=True):
    """A device's profile; retained."""

    device: Name
    profile: Profile


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
    """

    file: BlobRef
    log: BlobRef | None
    log_base_sha256: Sha256 | None
    log_previous_sha256: Sha256 | None = None


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


class BackpropPlan(_Message, frozen=True, tag="backprop", kw_only=True):
    """Train one round with backpropagation and layer dropout; see TrainPlan for the other fields.

    Attributes:
        stld: how layers are drawn, and the local steps.
        level: number of active layers (``bernoulli``: their mean).
    """

    job: Name
    job_seed: Annotated[int, msgspec.Meta(ge=0)]
    round: Count
    attempt: Count
    bundle_sha256: Sha256
    adapter: AdapterRef
    stld: Stld
    level: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    deadline_s: Annotated[float, msgspec.Meta(gt=0)]
    blob_url: str


class SyncPlan(_Message, frozen=True, tag="sync", kw_only=True):
    """Take over an adapter without training. ``final`` says that the job is finished."""

    job: Name
    round: Count
    bundle_sha256: Sha256
    adapter: AdapterRef
    final: bool
    blob_url: str


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
        front_passes: runs of the front block.
        back_passes: runs of the back block.
        front_seconds: time of these runs alone.
        back_seconds: time of these runs alone.
        link_bytes_per_s: speed of the last download that was large enough to tell; None: not known.
        replay_parameters_per_s: parameters × directions that the device replays per second; None: not known.
        blob_bytes: bytes fetched over HTTP for this round's adapter.
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


class DeltaReport(_Message, frozen=True, tag="delta", kw_only=True):
    """The result of a round on a backprop device; see RoundReport for the other fields.

    The delta itself is uploaded once the server has answered ``upload``; then the same report is sent again.

    Attributes:
        delta: the movement of the shared layers, a safetensors file; see delta.py.
        layers: the layers in it, ascending.
        personal_layers: how many layers stayed on the device.
        level: the plan's level.
        loss: mean loss of the local steps, with the active layers only.
        peak_rss_bytes: largest resident memory of the process so far; None: not known.
        blob_bytes: bytes fetched over HTTP for this round's adapter.
    """

    job: Name
    round: Count
    attempt: Count
    device: Name
    adapter_sha256: Sha256
    delta: BlobRef
    layers: Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=4096)]], msgspec.Meta(max_length=4096)]
    personal_layers: Count
    level: Annotated[int, msgspec.Meta(ge=1, le=4096)]
    examples: Annotated[int, msgspec.Meta(ge=1, le=2**40)]
    loss: float
    seconds: Seconds
    peak_rss_bytes: Count | None
    link_bytes_per_s: Rate | None
    replay_parameters_per_s: Rate | None
    blob_bytes: Count


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


Plan = TrainPlan | BackpropPlan | SyncPlan
Report = RoundReport | DeltaReport
DeviceReport = PlanAccepted | PlanRefused | Report | Synced
_SideMessage = LogRequest | LogLines | ServerPresent | Release | Released | TooOld
AnyMessage = Hello | Birth | DeviceState | ProfileMessage | Plan | DeviceReport | ReportAck | _SideMessage

MessageT = TypeVar("MessageT")

_SAME_VERSION = "install the same version of Covey on the devices and on the server"
_FORMAT = VersionedFormat(
    "a message",
    PROTOCOL_VERSION,
    msgspec.msgpack.decode,
    ProtocolError,
    hint=_SAME_VERSION,
    newer_hint=_SAME_VERSION,
    field_name="protocol version",
)


def encode_message(message: AnyMessage) -> bytes:
    """Return a message's bytes.

    Raises:
        ProtocolError: it is larger than LARGEST_MESSAGE_BYTES.
    """
    payload = msgspec.msgpack.encode(message)
    if len(payload) > LARGEST_MESSAGE_BYTES:
        raise ProtocolError(
            f"a {type(message).__name__} of {len(payload)} bytes is over the limit of {LARGEST_MESSAGE_BYTES}",
            "lower steps or the number of perturbations in the job",
        )
    return payload


def decode_message(payload: bytes, expected: type[MessageT]) -> MessageT:
    """Read a message of one type.

    Raises:
        ProtocolError: not MessagePack, another version, another type, a wrong or missing field, too large.
    """
    message: MessageT = _decode(payload, expected)
    return message


def decode_plan(payload: bytes) -> Plan:
    """Read a plan of any kind; see decode_message."""
    plan: Plan = _decode(payload, Plan)
    return plan


def decode_plan_or_refusal(payload: bytes) -> Plan | TooOld:
    """Read what the server publishes on a device's plan topic; see decode_message."""
    found: Plan | TooOld = _decode(payload, Plan | TooOld)
    return found


def decode_report(payload: bytes) -> Report:
    """Read the report of a trained round; see decode_message."""
    report: Report = _decode(payload, Report)
    return report


def decode_device_report(payload: bytes) -> DeviceReport:
    """Read what a device publishes on its report topic; see decode_message."""
    report: DeviceReport = _decode(payload, DeviceReport)
    return report


def _decode(payload: bytes, expected: Any) -> Any:  # noqa: ANN401 a type or a union of types, which mypy cannot name
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ProtocolError(
            f"a message of {len(payload)} bytes is over the limit of {MAX_PAYLOAD_BYTES}", _SAME_VERSION
        )
    return _FORMAT.read(payload, expected)
