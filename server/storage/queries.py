"""What can be asked of the ledger about jobs and rounds: one function per question, each with a typed answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, case, func, select

from edge_runtime.bundle.levels import Level
from server.bandit.choices import Choice
from server.bandit.state import BanditState
from server.storage.asking import records, tuples
from server.storage.level_columns import LEVEL
from server.storage.records import (
    AttemptRecord,
    ClosedRound,
    JobRecord,
    OfferRecord,
    OpenAttempt,
    RoundFigures,
    RoundPlan,
    RoundRecord,
    TakenDelta,
    TakenReport,
    Traffic,
)
from server.storage.tables import BANDITS, CHOICES, JOBS, OFFERS, ROUNDS

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Select

    from server.storage.ledger import Ledger


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


class _Agreement(msgspec.Struct):
    """The part of a round's figures that its devices' paths are compared in; none where the ledger is older."""

    agreement: dict[str, float] = {}


# -- jobs --------------------------------------------------------------------------------------------------------------

_JOB = [JOBS.c[name] for name in JobRecord.__dataclass_fields__]


def job_names(ledger: Ledger) -> list[str]:
    """Return the names of all jobs, oldest first."""
    query = select(JOBS.c.name).order_by(JOBS.c.created_at, JOBS.c.sequence)
    return [name for (name,) in tuples(ledger, tuple[str], query)]


def newest_job(ledger: Ledger) -> str | None:
    """Return the name of the newest job; None: there is none."""
    query = select(JOBS.c.name).order_by(JOBS.c.created_at.desc(), JOBS.c.sequence.desc()).limit(1)
    rows = tuples(ledger, tuple[str], query)
    return rows[0][0] if rows else None


def jobs_of(ledger: Ledger, fleet: str) -> list[JobRecord]:
    """Return a fleet's jobs in the order in which they come: by priority, then by submission."""
    query = select(*_JOB).where(JOBS.c.fleet == fleet).order_by(JOBS.c.priority.desc(), JOBS.c.sequence)
    return _jobs(ledger, query)


def find_job(ledger: Ledger, name: str) -> JobRecord | None:
    """Return a job; None: there is no job of this name."""
    jobs = _jobs(ledger, select(*_JOB).where(JOBS.c.name == name))
    return jobs[0] if jobs else None


def _jobs(ledger: Ledger, query: Select[Any]) -> list[JobRecord]:
    jobs = records(ledger, JobRecord, query, json={"config": dict[str, Any]})
    with ledger.database.reading():
        for job in jobs:
            msgspec.convert(job.config, _Config)
            if job.config.get("privacy") is not None:
                msgspec.convert(job.config, _PrivateConfig)
    return jobs


# -- rounds ------------------------------------------------------------------------------------------------------------


def _of_attempt(job: str, index: int, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return OFFERS.c.job == job, OFFERS.c.round == index, OFFERS.c.attempt == attempt


_SAME_ATTEMPT = and_(
    OFFERS.c.job == ROUNDS.c.job, OFFERS.c.round == ROUNDS.c.round, OFFERS.c.attempt == ROUNDS.c.attempt
)
_IS_REPORTED = case((OFFERS.c.state == "reported", 1), else_=0)
_ROUND = ROUNDS.c.round.label("index")


def closed_rounds(ledger: Ledger, job: str) -> list[ClosedRound]:
    """Return a job's aggregated rounds, in order."""
    names = ("base_sha256", "result_sha256", "log_sha256", "log_size_bytes", "terms", "mean_square", "figures")
    query = (
        select(_ROUND, *(ROUNDS.c[name] for name in names))
        .where(ROUNDS.c.job == job, ROUNDS.c.state == "aggregated")
        .order_by(ROUNDS.c.round)
    )
    return records(ledger, ClosedRound, query, json={"figures": RoundFigures})


def agreement_of(ledger: Ledger, job: str) -> list[dict[str, float]]:
    """Return for each of a job's aggregated rounds, in order, the cosine of each device's path with the others'."""
    query = select(ROUNDS.c.figures).where(ROUNDS.c.job == job, ROUNDS.c.state == "aggregated").order_by(ROUNDS.c.round)
    rows = tuples(ledger, tuple[str], query)
    with ledger.database.reading():
        return [msgspec.json.decode(figures, type=_Agreement).agreement for (figures,) in rows]


def rejections_of(ledger: Ledger, job: str, device: str | None = None) -> list[tuple[str, str, str | None]]:
    """Return device, state and detail of a job's offers that ended with a report or a refusal, in their order.

    Args:
        ledger: the ledger.
        job: name of the job.
        device: of this device only; None: of all.
    """
    query = select(OFFERS.c.device, OFFERS.c.state, OFFERS.c.detail)
    query = query.where(OFFERS.c.job == job, OFFERS.c.state.in_(("reported", "refused")))
    if device is not None:
        query = query.where(OFFERS.c.device == device)
    return tuples(ledger, tuple[str, str, str | None], query.order_by(OFFERS.c.round, OFFERS.c.attempt))


def rounds_of(ledger: Ledger, job: str) -> list[RoundRecord]:
    """Return every attempt at every round of a job, in order."""
    names = ("attempt", "state", "result_sha256", "loss", "accuracy")
    query = select(_ROUND, *(ROUNDS.c[name] for name in names)).where(ROUNDS.c.job == job)
    return records(ledger, RoundRecord, query.order_by(ROUNDS.c.round, ROUNDS.c.attempt))


def attempts_of(ledger: Ledger, job: str) -> list[AttemptRecord]:
    """Return every attempt at every round of a job, in order, with its plan and its offers counted."""
    names = ("attempt", "state", "plan", "loss", "accuracy", "result_sha256", "opened_at", "closed_at")
    key = (ROUNDS.c.job, ROUNDS.c.round, ROUNDS.c.attempt)
    query = (
        select(
            _ROUND,
            *(ROUNDS.c[name] for name in names),
            func.count(OFFERS.c.device).label("offered"),
            func.sum(case((OFFERS.c.device.is_(None), None), else_=_IS_REPORTED)).label("reports"),
            func.max(OFFERS.c.seconds).label("slowest_s"),
            func.sum(OFFERS.c.bytes_up).label("bytes_up"),
            func.sum(OFFERS.c.bytes_down).label("bytes_down"),
            func.avg(OFFERS.c.loss).label("train_loss"),
        )
        .select_from(ROUNDS.outerjoin(OFFERS, _SAME_ATTEMPT))
        .where(ROUNDS.c.job == job)
        .group_by(*key)
        .order_by(*key)
    )
    return records(ledger, AttemptRecord, query, json={"plan": RoundPlan})


def count_attempts(ledger: Ledger, job: str, index: int) -> int:
    """Return how many attempts at a round were begun."""
    query = select(func.count()).select_from(ROUNDS).where(ROUNDS.c.job == job, ROUNDS.c.round == index)
    ((count,),) = tuples(ledger, tuple[int], query)
    return int(count)


def open_attempt(ledger: Ledger, job: str) -> OpenAttempt | None:
    """Return the attempt that was open when the server stopped; None: there was none."""
    query = select(ROUNDS.c.round, ROUNDS.c.attempt, ROUNDS.c.plan)
    rows = tuples(ledger, tuple[int, int, str], query.where(ROUNDS.c.job == job, ROUNDS.c.state == "open"))
    if not rows:
        return None
    index, attempt, plan = rows[0]
    query = select(OFFERS.c.device, OFFERS.c.state).where(*_of_attempt(job, index, attempt))
    return OpenAttempt(index, attempt, _plan(ledger, plan), dict(tuples(ledger, tuple[str, str], query)))


def last_plan(ledger: Ledger, job: str, index: int) -> RoundPlan | None:
    """Return the plan of the last attempt at a round; None: there was no attempt."""
    query = select(ROUNDS.c.plan).where(ROUNDS.c.job == job, ROUNDS.c.round == index)
    rows = tuples(ledger, tuple[str], query.order_by(ROUNDS.c.attempt.desc()).limit(1))
    return _plan(ledger, rows[0][0]) if rows else None


def _plan(ledger: Ledger, plan: str) -> RoundPlan:
    with ledger.database.reading():
        return msgspec.json.decode(plan, type=RoundPlan)


# -- offers and reports ------------------------------------------------------------------------------------------------

_OFFER = [
    LEVEL,
    OFFERS.c.round.label("index"),
    *(
        OFFERS.c[name]
        for name in (
            "attempt",
            "device",
            "state",
            "detail",
            "seconds",
            "loss",
            "layers",
            "personal_layers",
            "peak_rss_bytes",
            "bytes_up",
            "bytes_down",
        )
    ),
]


def offers_of(ledger: Ledger, job: str) -> list[OfferRecord]:
    """Return all offers of a job, by round, attempt and device."""
    query = select(*_OFFER).where(OFFERS.c.job == job)
    query = query.order_by(OFFERS.c.round, OFFERS.c.attempt, OFFERS.c.device)
    return records(ledger, OfferRecord, query, json={"layers": list[int], "level": Level})


def _is_counted(job: str) -> tuple[ColumnElement[bool], ...]:
    """Return that an offer's report is in an aggregated round of a job; its round is joined."""
    return OFFERS.c.job == job, OFFERS.c.state == "reported", ROUNDS.c.state == "aggregated"


def counted_reports(ledger: Ledger, job: str) -> list[OfferRecord]:
    """Return the offers whose reports are in a job's aggregated rounds, by device and round."""
    query = select(*_OFFER).select_from(OFFERS.join(ROUNDS, _SAME_ATTEMPT)).where(*_is_counted(job))
    query = query.order_by(OFFERS.c.device, OFFERS.c.round)
    return records(ledger, OfferRecord, query, json={"layers": list[int], "level": Level})


def outcome_of(ledger: Ledger, job: str, index: int, attempt: int, device: str) -> tuple[str, float | None] | None:
    """Return the state of one offer, and the seconds that the device reported; None: the device had no offer."""
    query = select(OFFERS.c.state, OFFERS.c.seconds).where(*_of_attempt(job, index, attempt), OFFERS.c.device == device)
    rows = tuples(ledger, tuple[str, float | None], query)
    return rows[0] if rows else None


def taken_reports(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, TakenReport]:
    """Return an attempt's forward-only reports, by device in the order of the names."""
    query = (
        select(
            OFFERS.c.device,
            OFFERS.c.scalars,
            OFFERS.c.examples,
            (OFFERS.c.front_seconds / func.nullif(OFFERS.c.front_passes, 0)).label("front_s"),
            (OFFERS.c.back_seconds / func.nullif(OFFERS.c.back_passes, 0)).label("back_s"),
        )
        .where(*_of_attempt(job, index, attempt), OFFERS.c.state == "reported", OFFERS.c.scalars.is_not(None))
        .order_by(OFFERS.c.device)
    )
    rows = ledger.database.rows(query)
    with ledger.database.reading():
        return {msgspec.convert(row.pop("device"), str): msgspec.convert(row, TakenReport) for row in rows}


def taken_deltas(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, TakenDelta]:
    """Return an attempt's backprop reports, by device in the order of the names."""
    query = (
        select(OFFERS.c.device, OFFERS.c.delta_sha256, OFFERS.c.layers, OFFERS.c.examples)
        .where(*_of_attempt(job, index, attempt), OFFERS.c.state == "reported", OFFERS.c.delta_sha256.is_not(None))
        .order_by(OFFERS.c.device)
    )
    rows = tuples(ledger, tuple[str, str, str, int], query)
    with ledger.database.reading():
        return {
            device: TakenDelta(sha256, msgspec.json.decode(layers, type=list[int]), examples)
            for device, sha256, layers, examples in rows
        }


def taken_examples(ledger: Ledger, job: str, index: int, attempt: int) -> dict[str, int]:
    """Return the number of rows of each device whose report was taken, in the order of the names."""
    query = (
        select(OFFERS.c.device, OFFERS.c.examples)
        .where(*_of_attempt(job, index, attempt), OFFERS.c.state == "reported", OFFERS.c.examples.is_not(None))
        .order_by(OFFERS.c.device)
    )
    return dict(tuples(ledger, tuple[str, int], query))


def last_round_per_device(ledger: Ledger, job: str) -> dict[str, int]:
    """Return the last round that was offered to each device."""
    query = select(OFFERS.c.device, func.max(OFFERS.c.round)).where(OFFERS.c.job == job).group_by(OFFERS.c.device)
    return dict(tuples(ledger, tuple[str, int], query))


def traffic_of(ledger: Ledger, job: str) -> Traffic:
    """Return what the reports of a job's aggregated rounds cost."""
    query = (
        select(
            func.count().label("reports"),
            func.count(OFFERS.c.device.distinct()).label("devices"),
            func.sum(OFFERS.c.front_passes).label("front_passes"),
            func.sum(OFFERS.c.back_passes).label("back_passes"),
            func.avg(OFFERS.c.bytes_up).label("bytes_up"),
            func.avg(OFFERS.c.bytes_down).label("bytes_down"),
        )
        .select_from(OFFERS.join(ROUNDS, _SAME_ATTEMPT))
        .where(*_is_counted(job))
    )
    (traffic,) = records(ledger, Traffic, query)
    return traffic


def passes_per_round(ledger: Ledger, job: str) -> dict[int, tuple[int, int]]:
    """Return the front and back passes of all reports, for each round that has any, in order."""
    sums = [func.coalesce(func.sum(column), 0) for column in (OFFERS.c.front_passes, OFFERS.c.back_passes)]
    query = select(OFFERS.c.round, *sums).where(OFFERS.c.job == job, OFFERS.c.state == "reported")
    rows = tuples(ledger, tuple[int, int, int], query.group_by(OFFERS.c.round).order_by(OFFERS.c.round))
    return {index: (front, back) for index, front, back in rows}


def seconds_per_round(ledger: Ledger, job: str) -> dict[int, float]:
    """Return the seconds of training in all reports together, for each round that has any, in order."""
    query = select(OFFERS.c.round, func.sum(OFFERS.c.seconds)).where(OFFERS.c.job == job, OFFERS.c.seconds.is_not(None))
    return dict(tuples(ledger, tuple[int, float], query.group_by(OFFERS.c.round).order_by(OFFERS.c.round)))


def plans_offered(ledger: Ledger, job: str) -> list[tuple[str, RoundPlan]]:
    """Return a device and a plan for each offer of a job, including those whose report never counted."""
    query = select(OFFERS.c.device, ROUNDS.c.plan).select_from(OFFERS.join(ROUNDS, _SAME_ATTEMPT))
    rows = tuples(ledger, tuple[str, str], query.where(OFFERS.c.job == job))
    return [(device, _plan(ledger, plan)) for device, plan in rows]


# -- the bandit --------------------------------------------------------------------------------------------------------


def bandit_state(ledger: Ledger, job: str) -> BanditState | None:
    """Return what a job's bandit has learned; None: nothing yet."""
    rows = ledger.database.rows(select(BANDITS.c.state).where(BANDITS.c.job == job))
    with ledger.database.reading():
        return msgspec.msgpack.decode(rows[0]["state"], type=BanditState) if rows else None


def choices_of(ledger: Ledger, job: str, index: int, attempt: int) -> list[Choice]:
    """Return the arm choices of an attempt at a round."""
    key = (CHOICES.c.job == job, CHOICES.c.round == index, CHOICES.c.attempt == attempt)
    rows = ledger.database.rows(select(CHOICES.c.choice).where(*key))
    with ledger.database.reading():
        return [msgspec.msgpack.decode(row["choice"], type=Choice) for row in rows]


def all_choices_of(ledger: Ledger, job: str) -> list[tuple[int, int, Choice]]:
    """Return every arm choice of a job with its round and attempt, in their order."""
    query = select(CHOICES.c.round, CHOICES.c.attempt, CHOICES.c.choice).where(CHOICES.c.job == job)
    rows = tuples(ledger, tuple[int, int, bytes], query.order_by(CHOICES.c.round, CHOICES.c.attempt, CHOICES.c.device))
    with ledger.database.reading():
        return [(index, attempt, msgspec.msgpack.decode(choice, type=Choice)) for index, attempt, choice in rows]


def last_choice(ledger: Ledger, job: str, index: int, device: str) -> tuple[int, Choice] | None:
    """Return the last attempt at a round that chose an arm for a device, and the choice; None: none did."""
    key = (CHOICES.c.job == job, CHOICES.c.round == index, CHOICES.c.device == device)
    query = select(CHOICES.c.attempt, CHOICES.c.choice).where(*key).order_by(CHOICES.c.attempt.desc()).limit(1)
    rows = tuples(ledger, tuple[int, bytes], query)
    with ledger.database.reading():
        return (rows[0][0], msgspec.msgpack.decode(rows[0][1], type=Choice)) if rows else None
