"""Messages beside the rounds: logs, servers that look for each other, releases, and why a device gets no work."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.protocol.message_base import ProtocolMessage
from edge_runtime.values import Count, MirrorUrl, Name, Sha256

LONGEST_LINE = 500
"""Characters of one line of a log."""
MOST_LINES = 200
"""Lines that a device keeps, and that one request may ask for."""
LONGEST_FOLLOW_S = 600.0

Host = Annotated[str, msgspec.Meta(max_length=255)]
"""The name that a machine has for itself."""


class LogRequest(ProtocolMessage, frozen=True, tag="log_request", kw_only=True):
    """Send the log; server → device.

    Attributes:
        lines: so many of the last lines at once, up to the device's MOST_LINES.
        follow_s: send new lines for so many seconds from receipt; 0: none. A follower asks again before they are over.
    """

    lines: Annotated[int, msgspec.Meta(ge=0, le=MOST_LINES)]
    follow_s: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_FOLLOW_S)]


class LogLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a device's log, without anything private.

    Attributes:
        number: of the line since the device's first start, ascending by one.
        at_s: when it was written, in seconds since 1970 by the device's clock.
        level: ``INFO``, ``WARNING``, …
        text: the line.
    """

    number: Count
    at_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    level: Annotated[str, msgspec.Meta(max_length=20)]
    text: Annotated[str, msgspec.Meta(max_length=LONGEST_LINE + 1)]


class LogLines(ProtocolMessage, frozen=True, tag="log", kw_only=True):
    """Lines of a device's log; device → server, only while it is asked, and after a crash.

    Attributes:
        device: the device's name.
        boot_id: see Birth; with ``crash`` it is the start that follows the crash.
        reason: ``asked``, or ``crash``: the last lines before a process that did not end properly.
        dropped: lines that were left out since the last message, because there were too many.
        lines: in order of their numbers.
    """

    device: Name
    boot_id: Annotated[str, msgspec.Meta(max_length=64)]
    reason: Literal["asked", "crash"]
    dropped: Count
    lines: Annotated[list[LogLine], msgspec.Meta(max_length=MOST_LINES)]


class ServerPresent(ProtocolMessage, frozen=True, tag="server", kw_only=True):
    """A server of the fleet is here; server → servers, not retained.

    Attributes:
        server_id: random, new with every start.
        hostname: of its machine.
        age_s: seconds since its start.
        asks: whether the other servers are to answer; an answer does not ask.
    """

    server_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    hostname: Host
    age_s: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    asks: bool


ReleaseKind = Literal["bundle", "adapter", "wheel"]


class Release(ProtocolMessage, frozen=True, tag="release", kw_only=True):
    """Switch to a version, or go back from it; server → device, not retained: sent again to who announces itself.

    Attributes:
        rollout: number of the rollout; a device does what the last message says.
        kind: what is released.
        step: ``switch``, or ``back``: to what was there before this rollout.
        sha256: hash of the adapter, of the wheel, or of the bundle's manifest.
        size_bytes: of that file.
        bundle_sha256: the bundle that an adapter belongs to; None for the other kinds.
        blob_url: base address of the server's blobs.
        blob_mirror: see plans.TrainPlan.
        file_name: the name of a wheel, which pip reads; None for the other kinds.
    """

    rollout: Count
    kind: ReleaseKind
    step: Literal["switch", "back"]
    sha256: Sha256
    size_bytes: Count
    bundle_sha256: Sha256 | None
    blob_url: Annotated[str, msgspec.Meta(max_length=2000)]
    blob_mirror: MirrorUrl | msgspec.UnsetType = msgspec.UNSET
    file_name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,199}\.whl(?!\n)$")] | None


class Released(ProtocolMessage, frozen=True, tag="released", kw_only=True):
    """What became of a release; device → server, sent again with each announcement.

    Attributes:
        rollout: of the release.
        device: the device's name.
        kind: of the release.
        outcome: ``fetching``: it is at it, or tries again; ``failed``: what was there before is still in use.
        code: the exit code of the error; 0: there is none.
        reason: the error, without anything private; empty: there is none.
    """

    rollout: Count
    device: Name
    kind: ReleaseKind
    outcome: Literal["fetching", "switched", "failed", "rolled-back"]
    code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    reason: Annotated[str, msgspec.Meta(max_length=2000)]


class TooOld(ProtocolMessage, frozen=True, tag="too_old", kw_only=True):
    """There is no work for the device, and why; server → device, on its plan topic, once for each announcement.

    Attributes:
        job: the job that has no work for it.
        bundle_sha256: the bundle that needs newer libraries than the device has announced.
        reason: what is too old, and what to do about it.
    """

    job: Name
    bundle_sha256: Sha256
    reason: Annotated[str, msgspec.Meta(max_length=2000)]
