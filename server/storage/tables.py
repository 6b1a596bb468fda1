"""The ledger's tables. A change needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

import datetime as dt
import time
from typing import TYPE_CHECKING

from sqlalchemy import Column, Float, ForeignKey, ForeignKeyConstraint, Index, MetaData, Table, and_

from server.storage.columns import Bytes, Whole, Words

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement
    from sqlalchemy.engine.default import DefaultExecutionContext

METADATA = MetaData()
CLOCK = "covey_clock"
"""Key of a connection's ``info`` with its database's clock, which returns seconds since 1970."""


def time_text(moment: dt.datetime) -> str:
    """Return a time in UTC as the ledger writes it: ``2026-11-28 12:00:00``."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def text_of_s(moment_s: float) -> str:
    """Return a time, in seconds since 1970, as the ledger writes it."""
    return time_text(dt.datetime.fromtimestamp(moment_s, dt.timezone.utc))


def _now(context: DefaultExecutionContext) -> str:
    return text_of_s(context.root_connection.info.get(CLOCK, time.time)())


JOBS = Table(
    "jobs",
    METADATA,
    Column("name", Words, primary_key=True),
    Column("fleet", Words, nullable=False),
    Column("bundle_sha256", Words, nullable=False),
    Column("config", Words, nullable=False),
    Column("state", Words, nullable=False),
    Column("created_at", Words, nullable=False, default=_now),
    Column("finished_at", Words),
    Column("loss_start", Float),
    Column("accuracy_start", Float),
    Column("result_dir", Words),
    Column("priority", Whole, nullable=False, default=0, server_default="0"),
    Column("sequence", Whole, nullable=False, default=0, server_default="0"),
    Column("after", Words),
    Column("bundle_path", Words),
    Column("reason", Words),
)
"""Jobs; ``sequence`` is the order of their submission, ``config`` is job.toml as JSON."""

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("job", Words, ForeignKey("jobs.name"), primary_key=True),
    Column("round", Whole, primary_key=True),
    Column("attempt", Whole, primary_key=True),
    Column("state", Words, nullable=False),
    Column("plan", Words, nullable=False),
    Column("base_sha256", Words, nullable=False),
    Column("base_mean_square", Float),
    Column("opened_at", Words, nullable=False, default=_now),
    Column("closed_at", Words),
    Column("result_sha256", Words),
    Column("log_sha256", Words),
    Column("log_size_bytes", Whole),
    Column("terms", Whole),
    Column("mean_square", Float),
    Column("figures", Words),
    Column("loss", Float),
    Column("accuracy", Float),
)
"""Attempts at rounds; ``plan`` and ``figures`` are records.RoundPlan and RoundFigures as JSON."""

OFFERS = Table(
    "offers",
    METADATA,
    Column("job", Words, primary_key=True),
    Column("round", Whole, primary_key=True),
    Column("attempt", Whole, primary_key=True),
    Column("device", Words, primary_key=True),
    Column("state", Words, nullable=False),
    Column("detail", Words),
    Column("scalars", Bytes),
    Column("examples", Whole),
    Column("loss", Float),
    Column("seconds", Float),
    Column("front_passes", Whole),
    Column("back_passes", Whole),
    Column("front_seconds", Float),
    Column("back_seconds", Float),
    Column("level", Whole),
    Column("level_kind", Words),
    Column("delta_sha256", Words),
    Column("layers", Words),
    Column("personal_layers", Whole),
    Column("peak_rss_bytes", Whole),
    Column("bytes_up", Whole, nullable=False, default=0, server_default="0"),
    Column("bytes_down", Whole, nullable=False, default=0, server_default="0"),
    ForeignKeyConstraint(["job", "round", "attempt"], ["rounds.job", "rounds.round", "rounds.attempt"]),
    Index("offers_of_devices", "device"),
)
"""What became of each round's offer to each device, and the device's report.

``level`` is the number of layers that each mini-batch trains; ``level_kind`` is ``top`` at a top level, else NULL.
"""

DEVICES = Table(
    "devices",
    METADATA,
    Column("fleet", Words, primary_key=True),
    Column("name", Words, primary_key=True),
    Column("state", Words, nullable=False),
    Column("birth", Words),
    Column("adapter_sha256", Words),
    Column("last_seen", Words, nullable=False, default=_now),
    Column("ineligible", Words),
    Column("reason", Words),
    Column("quarantine", Words),
    Column("covey_version", Words),
    Column("board", Words),
    Index("devices_by_state", "fleet", "state", "name"),
    Index("devices_by_version", "fleet", "covey_version", "name"),
    Index("devices_by_board", "fleet", "board", "name"),
)
"""Devices as they were last heard.

``reason`` says why one is offered nothing at the moment, ``quarantine`` why it is offered nothing until the operator
decides. ``covey_version`` is that of ``birth``, ``board`` that of the newest valid profile: a list is filtered by them.
"""


def standings() -> dict[str, ColumnElement[bool]]:
    """Return what holds for a device in each standing, by its name; an index has the devices of each.

    A device that several things keep from work is in several standings; ``free``: nothing does.
    """
    return {
        "free": and_(*(DEVICES.c[name].is_(None) for name in ("quarantine", "ineligible", "reason"))),
        "ineligible": DEVICES.c.ineligible.is_not(None),
        "resting": DEVICES.c.reason.is_not(None),
        "quarantine": DEVICES.c.quarantine.is_not(None),
    }


for _standing, _holds in standings().items():
    Index(f"devices_{_standing}", DEVICES.c.fleet, DEVICES.c.name, sqlite_where=_holds, postgresql_where=_holds)

DEVICE_TAGS = Table(
    "device_tags",
    METADATA,
    Column("fleet", Words, primary_key=True),
    Column("device", Words, primary_key=True),
    Column("tag", Words, primary_key=True),
)
"""Tags that the operator gave; those of edge.toml are in ``devices.birth``."""

HELD_TAGS = Table(
    "held_tags",
    METADATA,
    Column("fleet", Words, primary_key=True),
    Column("tag", Words, primary_key=True),
    Column("device", Words, primary_key=True),
)
"""The tags that each known device has, whoever gave them: a list is filtered by them."""

CHOICES = Table(
    "choices",
    METADATA,
    Column("job", Words, primary_key=True),
    Column("round", Whole, primary_key=True),
    Column("attempt", Whole, primary_key=True),
    Column("device", Words, primary_key=True),
    Column("choice", Bytes, nullable=False),
)
"""Why each device got its arm: choices.Choice as MessagePack."""

BANDITS = Table(
    "bandits",
    METADATA,
    Column("job", Words, ForeignKey("jobs.name"), primary_key=True),
    Column("state", Bytes, nullable=False),
)
"""What each job's bandit has learned: a BanditState as MessagePack."""

PROFILES = Table(
    "profiles",
    METADATA,
    Column("id", Whole, primary_key=True),
    Column("fleet", Words, nullable=False),
    Column("device", Words, nullable=False),
    Column("payload_sha256", Words, nullable=False),
    Column("profile", Bytes),
    Column("bundle_sha256", Words),
    Column("remarks", Words, nullable=False),
    Column("received_at", Words, nullable=False, default=_now),
    Index("profiles_of_devices", "fleet", "device", "id"),
)
"""Profiles that devices published; ``profile`` is null where one was rejected."""

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", Whole, primary_key=True),
    Column("at", Words, nullable=False, default=_now),
    Column("actor", Words, nullable=False),
    Column("action", Words, nullable=False),
    Column("subject", Words, nullable=False),
    Column("detail", Words, nullable=False),
    Column("way", Words, nullable=False, server_default=""),
    Column("address", Words),
    Column("outcome", Words),
    Index("audit_of_subjects", "subject", "id"),
)
"""What operators have asked for, before it was done; see records.AuditRecord."""

JOIN_TOKENS = Table(
    "join_tokens",
    METADATA,
    Column("id", Words, primary_key=True),
    Column("fleet", Words, nullable=False),
    Column("device", Words, nullable=False),
    Column("secret_sha256", Words, nullable=False),
    Column("created_at", Words, nullable=False, default=_now),
    Column("expires_at_s", Whole, nullable=False),
    Column("state", Words, nullable=False),
    Column("key_sha256", Words),
    Column("facts", Words),
    Column("address", Words),
    Column("asked_at", Words),
    Column("serial", Words),
)
"""Join tokens; ``state``: open, pending, approved, rejected or used; ``key_sha256``: the key that one is bound to."""

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("serial", Words, primary_key=True),
    Column("fleet", Words, nullable=False),
    Column("device", Words, nullable=False),
    Column("key_sha256", Words, nullable=False),
    Column("certificate", Words, nullable=False),
    Column("issued_at", Words, nullable=False, default=_now),
    Column("expires_at_s", Whole, nullable=False),
    Column("revoked_at", Words),
    Column("reason", Words),
    Index("certificates_of_devices", "fleet", "device"),
)
"""Every certificate that was issued to a device (PEM), by its serial number in hexadecimal digits."""

ROLLOUTS = Table(
    "rollouts",
    METADATA,
    Column("id", Whole, primary_key=True),
    Column("fleet", Words, nullable=False),
    Column("source", Words, nullable=False),
    Column("created_at", Words, nullable=False, default=_now),
    Column("ended_at", Words),
    Column("state", Words, nullable=False),
    Column("document", Words, nullable=False),
)
"""Rollouts; ``source``: where what is rolled out lies on the server; ``document``: a Rollout as JSON."""
