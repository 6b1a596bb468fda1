"""What travels over the operator's API; OpenAPI's schemas are made from these types. Unknown is null."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_runtime.protocol.held_out import HeldOut
from edge_runtime.values import Name


class Submission(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job to enter in the queue.

    Attributes:
        job: the content of job.toml, with an absolute ``eval_file``.
        bundle: absolute path of the bundle on the server's machine.
        after: the job that must be finished first.
        priority: a larger one comes first; jobs at work are not interrupted.
        allow_absent: whether ``devices`` may name devices and tags that the fleet does not have yet.
    """

    job: dict[str, Any]
    bundle: str
    after: Name | None = None
    priority: int = 0
    allow_absent: bool = False


class JobStatus(msgspec.Struct, frozen=True):
    """One job: its state, its progress, and what it cost; losses and accuracies are held-out, bytes means per report.

    Attributes:
        reason: why it waits, or why it failed.
    """

    job: str
    fleet: str
    state: str
    reason: str | None
    priority: int
    after: str | None
    bundle_sha256: str
    bundle_path: str | None
    rounds: int
    rounds_wanted: int
    devices: int
    reports: int
    loss_start: float | None
    loss_end: float | None
    accuracy_start: float | None
    accuracy_end: float | None
    front_passes: int
    back_passes: int
    bytes_up_per_device_round: float | None
    bytes_down_per_device_round: float | None
    adapter_sha256: str | None
    epsilon: float | None
    delta: float | None
    result_dir: str | None


class JobList(msgspec.Struct, frozen=True):
    """All jobs, oldest first."""

    jobs: list[JobStatus]


class JobChange(msgspec.Struct, frozen=True):
    """A job and the state that it has now; ``pausing``: it is paused once its open round is over."""

    job: str
    state: str


class DeviceStatus(msgspec.Struct, frozen=True):
    """One device as it was last heard.

    Attributes:
        reason: why it is offered nothing at the moment.
        ineligible: why its owner's rules or its rows keep it from training.
        quarantine: why it takes part in nothing until the operator decides.
        tags: those of its edge.toml, and those that the operator gave it.
        held_out: how well its own model did on rows that it never trains on; None: it has none, or has not said it.
    """

    fleet: str
    device: str
    state: str
    ineligible: str | None
    reason: str | None
    quarantine: str | None
    tags: list[str]
    adapter_sha256: str | None
    last_seen: str
    reports: int
    mean_seconds: float | None
    machine: str | None
    covey_version: str | None
    runtimes: dict[str, str] | None
    execution_providers: list[str] | None
    rows: int | None
    training: str | None
    held_out: HeldOut | None


class DeviceList(msgspec.Struct, frozen=True):
    """One page of the devices, by fleet and name.

    Attributes:
        next: ``after`` of the next page; None: this is the last one.
    """

    devices: list[DeviceStatus]
    next: str | None = None


class LogLineSeen(msgspec.Struct, frozen=True):
    """One line of a device's log.

    Attributes:
        number: of the line on this server, ascending; ask for the lines after it.
        at_s: when the device wrote it, in seconds since 1970 by its clock.
        reason: ``asked``; ``crash``: it was written before a process that did not end properly.
        dropped: lines that the device left out before it.
    """

    number: int
    at_s: float
    level: str
    text: str
    reason: str
    dropped: int


class DeviceLog(msgspec.Struct, frozen=True):
    """Lines of a device's log, in order."""

    device: str
    lines: list[LogLineSeen]


class ServerStatus(msgspec.Struct, frozen=True):
    """The server.

    Attributes:
        api_version: version of this API.
        epoch: of its last hello; null: it has no connection to its broker yet.
        devices_here: number of devices that have answered the last hello.
        jobs_at_work: names of the jobs at work.
        uptime_s: seconds since its start.
        has_authority: whether covey fleet init was run: only members are heard.
        authority_sha256: SHA-256 of the authority's certificate (DER), in hex; null: the fleet has no authority.
        join_port: where devices join; null: the fleet has no authority.
        refused: how many messages were refused since the start, by ``DEVICE: REASON`` (docs/security.md); empty where
            messages are not signed.
    """

    api_version: int
    covey_version: str
    fleet: str
    broker: str
    mqtt_port: int | None
    http_port: int
    epoch: str | None
    devices_here: int
    jobs_at_work: list[str]
    uptime_s: float
    has_authority: bool
    authority_sha256: str | None
    join_port: int | None
    refused: dict[str, int]


class Problem(msgspec.Struct, frozen=True):
    """Why a request was refused.

    Attributes:
        error: what is wrong.
        hint: what to do.
        exit_code: the code with which a command ends on it; see ``covey --help``.
    """

    error: str
    hint: str
    exit_code: int


class TokenOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Join tokens to make.

    Attributes:
        names: names of devices, each once.
        server_url: ``https://host:port`` where devices join.
        valid_s: how long the tokens may be used, in seconds.
    """

    names: list[Name]
    server_url: str
    valid_s: float = 3600.0


class TokensMade(msgspec.Struct, frozen=True):
    """New join tokens by the name of their device. They are secret."""

    tokens: dict[str, str]


class JoinWaiting(msgspec.Struct, frozen=True):
    """A device that waits for approval; ``host`` to ``covey_version`` are what it says of itself."""

    fleet: str
    device: str
    address: str | None
    asked_at: str | None
    key_sha256: str | None
    host: str = ""
    machine: str = ""
    system: str = ""
    covey_version: str = ""


class JoinList(msgspec.Struct, frozen=True):
    """The devices that wait for approval."""

    joins: list[JoinWaiting]


class NewName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device's new name."""

    name: Name
