"""What can be asked of the ledger: one function per question, each with a typed answer.

Every value is checked against the type of its answer. What does not fit, or cannot be decoded, is a damaged ledger, and
becomes the StorageError of Database.reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from edge_runtime.protocol.profile import Profile
from server.bandit.choices import Choice
from server.bandit.state import BanditState
from server.storage.records import (
    AttemptRecord,
    ClosedRound,
    DeviceRecord,
    JobRecord,
    OfferRecord,
    OpenAttempt,
    ProfileRecord,
    RoundFigures,
    RoundPlan,
    RoundRecord,
    TakenDelta,
    TakenReport,
    Traffic,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.storage.ledger import Ledger

T = TypeVar("T")


def _records(
    ledger: Ledger, kind: type[T], query: str, *values: object, json: Mapping[str, Any] | None = None
) -> list[T]:
    """Return a query's rows as records of a kind; ``json`` gives the types of columns that hold JSON."""
    rows = ledger.database.rows(query, *values)
    with ledger.database.reading():
        for row in rows:
            for column, type_ in (json or {}).items():
                row[column] = None if row[column] is None else msgspec.json.decode(row[column], type=type_)
        return msgspec.convert(rows, list[kind])  # type: ignore[valid-type]


def _tuples(ledger: Ledger, kind: Any, query: str, *values: object) -> list[Any]:  # noqa: ANN401 a tuple type
    """Return a query's rows as tuples of a type: ``tuple[str, int]``."""
    rows = ledger.database.rows(query, *values)
    with ledger.database.reading():
        return [msgspec.convert(tuple(row.values()), kind) for row in rows]


class _Privacy(msgspec.Struct):
    noise_multiplier: float
    delta: float


class _Config(msgspec.Struct):
    """The field of every job's configuration that is looked into."""

    rounds: int


class _PrivateConfig(msgspec.Struct):
    """The fields of a private job's configuration that are looked into."""

    steps: int
    privacy: _Privacy


class _Birth(msgspec.Struct):
    """The fields of a birth message that are looked into."""

    capability: dict[str, Any] = {}


# -- jobs --------------------------------------------------------------------------------------------------------------


def job_names(ledger: Ledger) -> list[str]:
    """Return the names of all jobs, oldest first."""
    return [name for (name,) in _tuples(ledger, tuple[str], "SELECT name FROM jobs ORDER BY created_at, name")]


def newest_job(ledger: Ledger) -> str | None:
    """Return the name of the newest job; None: there is none."""
    rows = _tuples(ledger, tuple[str], "SELECT name FROM jobs ORDER BY created_at DESC, rowid DESC LIMIT 1")
    return rows[0][0] if rows else None


_JOB = "name, fleet, bundle_sha256, config, state, loss_start, accuracy_start, result_dir, priority, after, bundle_path, reason"


def jobs_of(ledger, fleet):
    return [
        r
        for r in _records(
            ledger,
            JobRecord,
            f"SELECT {_JOB} FROM jobs WHERE fleet = ? ORDER BY priority DESC, rowid",
            fleet,
            json={"config": dict[str, Any]},
        )
    ]


def tags_of(ledger, fleet):
    found = {}
    for device, tag in _tuples(ledger, tuple[str, str], "SELECT device, tag FROM device_tags WHERE fleet = ?", fleet):
        found.setdefault(device, set()).add(tag)
    return found


def find_job(ledger: Ledger, name: str) -> JobRecord | None:
    """Return a job; None: there is no job of this name."""
    columns = _JOB
    query = f"SELECT {columns} FROM jobs WHERE name = ?"  # noqa: S608 our own columns
    jobs = _records(ledger, JobRecord, query, name, json={"config": dict[str, Any]})
    with ledger.database.reading():
        for job in jobs:
            msgspec.convert(job.config, _Config)
            if job.config.get("privacy") is not None:
                msgspec.convert(job.config, _PrivateConfig)
    return jobs[0] if jobs else None


# -- rounds ------------------------------------------------------------------------------------------------------------


def closed_rounds(ledger: Ledger, job: str) -> list[ClosedRound]:
    """Return a job's aggregated rounds, in order."""
    return _records(
        ledger,
        ClosedRound,
        "SELECT round AS 'index', base_sha256, result_sha256, log_sha256, log_size_bytes, terms, mean_square, figures "
        "FROM rounds WHERE job = ? AND state = 'aggregated' ORDER BY round",
        job,
        json={"figures": RoundFigures},
    )


def rounds_of(ledger: Ledger, job: str) -> list[RoundRecord]:
    """Return every attempt at every round of a job, in order."""
    return _records(
        ledger,
        RoundRecord,
        "SELECT round AS 'index', attempt, state, result_sha256, loss, accuracy FROM rounds WHERE job = ? "
        "ORDER BY round, attempt",
        job,
    )


def attempts_of(ledger: Ledger, job: str) -> list[AttemptRecord]:
    """Return every attempt at every round of a job, in order, with its plan and its offers counted."""
    return _records(
        ledger,
        AttemptRecord,
        "SELECT r.round AS 'index', r.attempt, r.state, count(o.device) AS offered, "
        "sum(o.state = 'reported') AS reports, max(o.seconds) AS slowest_s, sum(o.bytes_up) AS bytes_up, "
        "sum(o.bytes_down) AS bytes_down, r.plan, avg(o.loss) AS train_loss, r.loss, r.accuracy, r.result_sha256, "
        "r.opened_at, r.closed_at FROM rounds r LEFT JOIN offers o USING (job, round, attempt) WHERE r.job = ? "
        "GROUP BY r.round, r.attempt ORDER BY r.round, r.attempt",
        job,
        json={"plan": RoundPlan},
    )


def count_attempts(ledger: Ledger, job: str, index: int) -> int:
    """Return how many attempts at a round were begun."""
    query = "SELECT count(*) FROM rounds WHERE job = ? AND round = ?"
    ((count,),) = _tuples(ledger, tuple[int], query, job, index)
    return int(count)


def open_attempt(ledger: Ledger, job: str) -> OpenAttempt | None:
    """Return the attempt that was open when the server stopped; None: there was none."""
    query = "SELECT round, attempt, plan FROM rounds WHERE job = ? AND state = 'open'"
    rows = _tuples(ledger, tuple[int, int, str], query, job)
    if not rows:
        return None
    index, attempt, plan = rows[0]
    query = "SELECT device, state FROM offers WHERE job = ? AND round = ? AND attempt = ?"
    offers = _tuples(ledger, tuple[str, str], query, job, index, attempt)
    return OpenAttempt(index, attempt, _plan(ledger, plan), dict(offers))


def last_plan(ledger: Ledger, job: str, index: int) -> RoundPlan | None:
    """Return the plan of the last attempt at a round; None: there was no attempt."""
    query = "SELECT plan FROM rounds WHERE job = ? AND round = ? ORDER BY attempt DESC LIMIT 1"
    rows = _tuples(ledger, tuple[str], query, job, index)
    return _plan(ledger, rows[0][0]) if rows else None


def _plan(ledger: Ledger, plan: str) -> RoundPlan:
    with ledger.database.reading():
        return msgspec.json.decode(plan, type=RoundPlan)


# -- offers and reports ------------------------------------------------------------------------------------------------

_OFFER_COLUMNS = (
    "o.round AS 'index', o.attempt, o.device, o.state, o.detail, o.level, o.seconds, o.loss, o.layers, "
    "o.personal_layers, o.peak_rss_bytes, o.bytes_up, o.bytes_down"
)


def offers_of(ledger: Ledger, job: str) -> list[OfferRecord]:
    """Return all offers of a job, by round, attempt and device."""
    return _offers(ledger, "WHERE o.job = ? ORDER BY o.round, o.attempt, o.device", job)


def counted_reports(ledger: Ledger, job: str) -> list[OfferRecord]:
    """Return the offers whose reports are in a job's aggregated rounds, by device and round."""
    return _offers(
        ledger,
        "JOIN rounds r USING (job, round, attempt) WHERE o.job = ? AND o.state = 'reported' "
        "AND r.state = 'aggregated' ORDER BY o.device, o.round",
        job,
    )


def _offers(ledger: Ledger, where: str, job: str) -> list[OfferRecord]:
    query = f"SELECT {_OFFER_COLUMNS} FROM offers o {where}"  # noqa: S608 our own text
    return _records(ledger, OfferRecord, query, job, json={"layers": list[int]})


def outcome_of(ledger: Ledger, job: str, index: int, attempt: int, device: str) -> tuple[str, float | None] | None:
    """Return the state of one offer, and the seconds that the device reported; None: the device had no offer."""
    query = "SELECT state, seconds FROM offers WHERE job = ? AND round = ? AND attempt = ? AND device = ?"
    rows = _tuples(ledger, tuple[str, float | None], query, job, index, attempt, device)
    return rows[0] if rows else None


def taken_reports(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, TakenReport]:
    """Return an attempt's forward-only reports, by device in the order of the names."""
    rows = ledger.database.rows(
        "SELECT device, scalars, examples, front_seconds / nullif(front_passes, 0) AS front_s, "
        "back_seconds / nullif(back_passes, 0) AS back_s FROM offers WHERE job = ? AND round = ? AND attempt = ? "
        "AND state = 'reported' AND scalars IS NOT NULL ORDER BY device",
        job,
        index,
        attempt,
    )
    with ledger.database.reading():
        return {msgspec.convert(row.pop("device"), str): msgspec.convert(row, TakenReport) for row in rows}


def taken_deltas(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, TakenDelta]:
    """Return an attempt's backprop reports, by device in the order of the names."""
    rows = _tuples(
        ledger,
        tuple[str, str, str, int],
        "SELECT device, delta_sha256, layers, examples FROM offers WHERE job = ? AND round = ? AND attempt = ? "
        "AND state = 'reported' AND delta_sha256 IS NOT NULL ORDER BY device",
        job,
        index,
        attempt,
    )
    with ledger.database.reading():
        return {
            device: TakenDelta(sha256, msgspec.json.decode(layers, type=list[int]), examples)
            for device, sha256, layers, examples in rows
        }


def taken_examples(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, int]:
    """Return the number of rows of each device whose report was taken, in the order of the names."""
    rows = _tuples(
        ledger,
        tuple[str, int],
        "SELECT device, examples FROM offers WHERE job = ? AND round = ? AND attempt = ? AND state = 'reported' "
        "AND examples IS NOT NULL ORDER BY device",
        job,
        index,
        attempt,
    )
    return dict(rows)


def last_round_per_device(ledger: Ledger, job: str) -> dict[str, int]:
    """Return the last round that was offered to each device."""
    query = "SELECT device, max(round) FROM offers WHERE job = ? GROUP BY device"
    return dict(_tuples(ledger, tuple[str, int], query, job))


def traffic_of(ledger: Ledger, job: str) -> Traffic:
    """Return what the reports of a job's aggregated rounds cost."""
    (traffic,) = _records(
        ledger,
        Traffic,
        "SELECT count(*) AS reports, count(DISTINCT o.device) AS devices, sum(o.front_passes) AS front_passes, "
        "sum(o.back_passes) AS back_passes, avg(o.bytes_up) AS bytes_up, avg(o.bytes_down) AS bytes_down "
        "FROM offers o JOIN rounds r USING (job, round, attempt) WHERE o.job = ? AND o.state = 'reported' "
        "AND r.state = 'aggregated'",
        job,
    )
    return traffic


def passes_per_round(ledger: Ledger, job: str) -> dict[int, tuple[int, int]]:
    """Return the front and back passes of all reports, for each round that has any, in order."""
    rows = _tuples(
        ledger,
        tuple[int, int, int],
        "SELECT round, coalesce(sum(front_passes), 0), coalesce(sum(back_passes), 0) FROM offers WHERE job = ? "
        "AND state = 'reported' GROUP BY round ORDER BY round",
        job,
    )
    return {index: (front, back) for index, front, back in rows}


def plans_offered(ledger: Ledger, job: str) -> list[tuple[str, RoundPlan]]:
    """Return a device and a plan for each offer of a job, including those whose report never counted."""
    query = "SELECT o.device, r.plan FROM offers o JOIN rounds r USING (job, round, attempt) WHERE o.job = ?"
    return [(device, _plan(ledger, plan)) for device, plan in _tuples(ledger, tuple[str, str], query, job)]


# -- the bandit --------------------------------------------------------------------------------------------------------


def bandit_state(ledger: Ledger, job: str) -> BanditState | None:
    """Return what a job's bandit has learned; None: nothing yet."""
    rows = ledger.database.rows("SELECT state FROM bandits WHERE job = ?", job)
    with ledger.database.reading():
        return msgspec.msgpack.decode(rows[0]["state"], type=BanditState) if rows else None


def choices_of(ledger: Ledger, job: str, index: int, attempt: int) -> list[Choice]:
    """Return the arm choices of an attempt at a round."""
    query = "SELECT choice FROM choices WHERE job = ? AND round = ? AND attempt = ?"
    rows = ledger.database.rows(query, job, index, attempt)
    with ledger.database.reading():
        return [msgspec.msgpack.decode(row["choice"], type=Choice) for row in rows]


def last_choice(ledger: Ledger, job: str, index: int, device: str) -> tuple[int, Choice] | None:
    """Return the last attempt at a round that chose an arm for a device, and the choice; None: none did."""
    query = (
        "SELECT attempt, choice FROM choices WHERE job = ? AND round = ? AND device = ? ORDER BY attempt DESC LIMIT 1"
    )
    rows = _tuples(ledger, tuple[int, bytes], query, job, index, device)
    with ledger.database.reading():
        return (rows[0][0], msgspec.msgpack.decode(rows[0][1], type=Choice)) if rows else None


# -- devices and profiles ----------------------------------------------------------------------------------------------


def devices_of(ledger: Ledger) -> list[DeviceRecord]:
    """Return every device that ever announced itself, by fleet and name."""
    devices = _records(
        ledger,
        DeviceRecord,
        "SELECT d.fleet, d.name AS device, d.state, d.ineligible, d.reason, coalesce(d.birth, '{}') AS birth, d.adapter_sha256, "
        "d.last_seen, count(o.job) AS reports, avg(o.seconds) AS mean_seconds FROM devices d "
        "LEFT JOIN offers o ON o.device = d.name AND o.state = 'reported' GROUP BY d.fleet, d.name "
        "ORDER BY d.fleet, d.name",
        json={"birth": dict[str, Any]},
    )
    with ledger.database.reading():
        for device in devices:
            msgspec.convert(device.birth, _Birth)
    return devices


def newest_profile(ledger: Ledger, fleet: str, device: str, bundle_sha256: str | None = None) -> Profile | None:
    """Return a device's last valid profile, of the given bundle or (None) of any; None: there is none."""
    rows = ledger.database.rows(
        "SELECT profile FROM profiles WHERE fleet = ? AND device = ? AND profile IS NOT NULL "
        "AND bundle_sha256 = coalesce(?, bundle_sha256) ORDER BY id DESC LIMIT 1",
        fleet,
        device,
        bundle_sha256,
    )
    with ledger.database.reading():
        return msgspec.json.decode(rows[0]["profile"], type=Profile) if rows else None


def fleets_with_profiles_of(ledger: Ledger, device: str) -> list[str]:
    """Return the fleets in which a device of this name has published a profile, by name."""
    query = "SELECT DISTINCT fleet FROM profiles WHERE device = ? ORDER BY fleet"
    return [fleet for (fleet,) in _tuples(ledger, tuple[str], query, device)]


def profiles_of(ledger: Ledger, device: str, fleet: str | None = None) -> list[ProfileRecord]:
    """Return the profiles kept of a device, of the given fleet or (None) of any, by fleet and oldest first."""
    return _records(
        ledger,
        ProfileRecord,
        "SELECT fleet, device, received_at, profile, bundle_sha256, remarks FROM profiles WHERE device = ? "
        "AND fleet = coalesce(?, fleet) ORDER BY fleet, id",
        device,
        fleet,
        json={"profile": Profile, "remarks": list[str]},
    )
