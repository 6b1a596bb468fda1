"""The ledger's tables. A change needs a migration in ``migrations/versions``; a test compares the two."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

if TYPE_CHECKING:
    from sqlalchemy import Dialect

METADATA = MetaData()


class Bytes(LargeBinary):
    """Bytes, returned as they are: SQLAlchemy would make as many zeros of a number that a damaged file has there."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Return no conversion."""


def time_text(moment: dt.datetime) -> str:
    """Return a time in UTC as the ledger writes it: ``2026-11-28 12:00:00``."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def now_text() -> str:
    """Return the time now as the ledger writes it."""
    return time_text(dt.datetime.now(dt.timezone.utc))


JOBS = Table(
    "jobs",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("bundle_sha256", Text, nullable=False),
    Column("config", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Text, nullable=False, default=now_text),
    Column("finished_at", Text),
    Column("loss_start", Float),
    Column("accuracy_start", Float),
    Column("result_dir", Text),
    Column("priority", Integer, nullable=False, default=0, server_default="0"),
    Column("sequence", Integer, nullable=False, default=0, server_default="0"),
    Column("after", Text),
    Column("bundle_path", Text),
    Column("reason", Text),
)
"""Jobs; ``sequence`` is the order of their submission, ``config`` is job.toml as JSON."""

ROUNDS = Table(
    "rounds",
    METADATA,
    Column("job", Text, ForeignKey("jobs.name"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("state", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("base_sha256", Text, nullable=False),
    Column("base_mean_square", Float),
    Column("opened_at", Text, nullable=False, default=now_text),
    Column("closed_at", Text),
    Column("result_sha256", Text),
    Column("log_sha256", Text),
    Column("log_size_bytes", Integer),
    Column("terms", Integer),
    Column("mean_square", Float),
    Column("figures", Text),
    Column("loss", Float),
    Column("accuracy", Float),
)
"""Attempts at rounds; ``plan`` and ``figures`` are records.RoundPlan and RoundFigures as JSON."""

OFFERS = Table(
    "offers",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("detail", Text),
    Column("scalars", Bytes),
    Column("examples", Integer),
    Column("loss", Float),
    Column("seconds", Float),
    Column("front_passes", Integer),
    Column("back_passes", Integer),
    Column("front_seconds", Float),
    Column("back_seconds", Float),
    Column("level", Integer),
    Column("level_kind", Text),
    Column("delta_sha256", Text),
    Column("layers", Text),
    Column("personal_layers", Integer),
    Column("peak_rss_bytes", Integer),
    Column("bytes_up", Integer, nullable=False, default=0, server_default="0"),
    Column("bytes_down", Integer, nullable=False, default=0, server_default="0"),
    ForeignKeyConstraint(["job", "round", "attempt"], ["rounds.job", "rounds.round", "rounds.attempt"]),
)
"""What became of each round's offer to each device, and the device's report.

``level`` is the number of layers that each mini-batch trains; ``level_kind`` is ``top`` at a top level, else NULL.
"""

DEVICES = Table(
    "devices",
    METADATA,
    Column("fleet", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("birth", Text),
    Column("adapter_sha256", Text),
    Column("last_seen", Text, nullable=False, default=now_text),
    Column("ineligible", Text),
    Column("reason", Text),
    Column("quarantine", Text),
)
"""Devices as they were last heard.

``reason`` says why one is offered nothing at the moment, ``quarantine`` why it is offered nothing until the operator
decides.
"""

DEVICE_TAGS = Table(
    "device_tags",
    METADATA,
    Column("fleet", Text, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("tag", Text, primary_key=True),
)
"""Tags that the operator gave; those of edge.toml are in ``devices.birth``."""

CHOICES = Table(
    "choices",
    METADATA,
    Column("job", Text, primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("device", Text, primary_key=True),
    Column("choice", Bytes, nullable=False),
)
"""Why each device got its arm: choices.Choice as MessagePack."""

BANDITS = Table(
    "bandits",
    METADATA,
    Column("job", Text, ForeignKey("jobs.name"), primary_key=True),
    Column("state", Bytes, nullable=False),
)
"""What each job's bandit has learned: a BanditState as MessagePack."""

PROFILES = Table(
    "profiles",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("payload_sha256", Text, nullable=False),
    Column("profile", Bytes),
    Column("bundle_sha256", Text),
    Column("remarks", Text, nullable=False),
    Column("received_at", Text, nullable=False, default=now_text),
    Index("profiles_of_devices", "fleet", "device", "id"),
)
"""Profiles that devices published; ``profile`` is null where one was rejected."""

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", Text, nullable=False, default=now_text),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("way", Text, nullable=False, server_default=""),
    Column("address", Text),
    Column("outcome", Text),
    Index("audit_of_subjects", "subject", "id"),
)
"""What operators have asked for, before it was done; see records.AuditRecord."""

JOIN_TOKENS = Table(
    "join_tokens",
    METADATA,
    Column("id", Text, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", Text, nullable=False, default=now_text),
    Column("expires_at_s", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("key_sha256", Text),
    Column("facts", Text),
    Column("address", Text),
    Column("asked_at", Text),
    Column("serial", Text),
)
"""Join tokens; ``state``: open, pending, approved, rejected or used; ``key_sha256``: the key that one is bound to."""

CERTIFICATES = Table(
    "certificates",
    METADATA,
    Column("serial", Text, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("key_sha256", Text, nullable=False),
    Column("certificate", Text, nullable=False),
    Column("issued_at", Text, nullable=False, default=now_text),
    Column("expires_at_s", Integer, nullable=False),
    Column("revoked_at", Text),
    Column("reason", Text),
    Index("certificates_of_devices", "fleet", "device"),
)
"""Every certificate that was issued to a device (PEM), by its serial number in hexadecimal digits."""

ROLLOUTS = Table(
    "rollouts",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("fleet", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("created_at", Text, nullable=False, default=now_text),
    Column("ended_at", Text),
    Column("state", Text, nullable=False),
    Column("document", Text, nullable=False),
)
"""Rollouts; ``source``: where what is rolled out lies on the server; ``document``: a Rollout as JSON."""
