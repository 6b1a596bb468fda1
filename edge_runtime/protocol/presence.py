"""Who is here: the server's hello, and a device's birth, state and profile. All are retained."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.protocol.held_out import HeldOut
from edge_runtime.protocol.message_base import ProtocolMessage as _Message
from edge_runtime.protocol.profile import Profile
from edge_runtime.protocol.side_messages import Host
from edge_runtime.values import Count, Name, Sha256

Tags = Annotated[list[Name], msgspec.Meta(max_length=32)]
Epoch = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


FROZEN_FRONT = "frozen-front"
"""Among a birth's methods: the device knows rules that freeze the front (step_rule.StepRule.front)."""

FROZEN_TRAINING = "frozen-training"
"""Among a birth's methods: the device knows backprop plans with a frozen front (plans.BackpropPlan.frozen_split)."""

BLOB_MIRROR = "blob-mirror"
"""Among a birth's methods: the device knows plans and releases that name a mirror of the blobs."""


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
        methods: what it can be asked for that not every version knows: ``spzo``; the switches of the step's rule
            (``keep_directions``, ``curvature``, ``sign_momentum``); ``frozen-front``, see FROZEN_FRONT; ``top-levels``,
            see levels.TOP_LEVELS; ``frozen-training``, see FROZEN_TRAINING;
            ``blob-mirror``, see BLOB_MIRROR.
        connection: number of connections to a broker since that start, from 1.
        epoch: of the last hello that the device has heard; None: it has heard none.
        tags: what jobs can name the device by, beside its name.
        hostname: of its machine; None: not known.
        address: of its machine on the connection to the broker; None: not known.
        execution_providers: what ONNX Runtime runs the graphs on, as in edge.toml; left out: the processor.
        held_out: how well its own model did on held-out rows; left out: it has none, or has not measured it yet.
        predicts: whether it answers the server's requests for predictions (predictions.py); left out: it does not.
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
    predicts: bool | msgspec.UnsetType = msgspec.UNSET


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
