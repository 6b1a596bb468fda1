"""The ledger's writes about rounds: opened, offered, reported, closed; and what the bandit chose."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import bindparam, delete, insert, update

from server.storage.level_columns import level_columns
from server.storage.tables import BANDITS, CHOICES, OFFERS, ROUNDS
from server.storage.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Update

    from edge_runtime.bundle.levels import Level
    from server.storage.records import ClosedRound


def _of_offer(statement: Update) -> Update:
    """Return an update of the offer whose key is in the parameters; see _key."""
    return statement.where(
        OFFERS.c.job == bindparam("of_job"),
        OFFERS.c.round == bindparam("of_round"),
        OFFERS.c.attempt == bindparam("of_attempt"),
        OFFERS.c.device == bindparam("of_device"),
    )


def _key(job: str, index: int, attempt: int, device: str) -> dict[str, object]:
    return {"of_job": job, "of_round": index, "of_attempt": attempt, "of_device": device}


# Statements that every device needs several times a round are made once: it is half of their cost.
_OFFER_IS = _of_offer(update(OFFERS).values(state=bindparam("new_state"), detail=bindparam("new_detail")))
_ADD_BYTES = _of_offer(
    update(OFFERS).values(
        bytes_up=OFFERS.c.bytes_up + bindparam("more_up"), bytes_down=OFFERS.c.bytes_down + bindparam("more_down")
    )
)
_OPENED, _OFFERED, _CHOSEN = insert(ROUNDS), insert(OFFERS), insert(CHOICES)
_FORGET_BANDIT, _BANDIT = delete(BANDITS).where(BANDITS.c.job == bindparam("of_job")), insert(BANDITS)


@functools.cache
def _reported(columns: tuple[str, ...]) -> Update:
    """Return the statement that enters a report with values for some columns; there are as many as kinds of reports."""
    return _of_offer(
        update(OFFERS).values(state="reported", **{column: bindparam(f"new_{column}") for column in columns})
    )


class RoundWrites(Writes):
    """See the file's first line."""

    def open_round(
        self,
        job: str,
        index: int,
        attempt: int,
        plan: str,
        base_sha256: str,
        mean_square: float | None,
        devices: Mapping[str, Level | None],
    ) -> None:
        """Enter an attempt at a round and its offers.

        ``plan`` is a records.RoundPlan as JSON, ``devices`` gives each device's level, None for forward-only.
        """
        key = {"job": job, "round": index, "attempt": attempt}
        base = {"plan": plan, "base_sha256": base_sha256, "base_mean_square": mean_square}
        with self.database.transaction():
            self.database.write(_OPENED, {**key, **base, "state": "open", "opened_at": self.database.now_text()})
            self.database.write_many(
                _OFFERED,
                [
                    {**key, "device": device, **level_columns(level), "state": "offered"}
                    for device, level in devices.items()
                ],
            )

    def offer_is(self, job: str, index: int, attempt: int, device: str, state: str, detail: str | None = None) -> None:
        """Enter the new state of an offer."""
        self.database.write(_OFFER_IS, _key(job, index, attempt, device) | {"new_state": state, "new_detail": detail})

    def take_report(self, job: str, index: int, attempt: int, device: str, values: dict[str, Any]) -> None:
        """Enter a report; the keys of ``values`` are columns of ``offers``."""
        new = {f"new_{column}": value for column, value in values.items()}
        self.database.write(_reported(tuple(values)), _key(job, index, attempt, device) | new)

    def add_bytes(self, job: str, index: int, attempt: int, device: str, *, up: int = 0, down: int = 0) -> None:
        """Add bytes that travelled for an offer, from the device (``up``) and to it (``down``)."""
        self.database.write(_ADD_BYTES, _key(job, index, attempt, device) | {"more_up": up, "more_down": down})

    def _of_round(self, job: str, index: int, attempt: int) -> Update:
        return update(ROUNDS).where(ROUNDS.c.job == job, ROUNDS.c.round == index, ROUNDS.c.attempt == attempt)

    def close_round(
        self, job: str, attempt: int, closed: ClosedRound, agreement: Mapping[str, float] | None = None
    ) -> None:
        """Enter a round's result, and the cosine of each device's path with the others'; None: none is known."""
        figures = msgspec.to_builtins(closed.figures) | {"agreement": dict(agreement or {})}
        result = self._of_round(job, closed.index, attempt).values(
            state="aggregated",
            closed_at=self.database.now_text(),
            result_sha256=closed.result_sha256,
            log_sha256=closed.log_sha256,
            log_size_bytes=closed.log_size_bytes,
            terms=closed.terms,
            mean_square=closed.mean_square,
            figures=msgspec.json.encode(figures).decode(),
        )
        self.database.write(result)

    def abandon_round(self, job: str, index: int, attempt: int) -> None:
        """Enter that an attempt had too few reports."""
        self.database.write(
            self._of_round(job, index, attempt).values(state="abandoned", closed_at=self.database.now_text())
        )

    def round_evaluated(self, job: str, index: int, loss: float, accuracy: float) -> None:
        """Enter held-out loss and accuracy of a round's adapter."""
        closed = (ROUNDS.c.job == job, ROUNDS.c.round == index, ROUNDS.c.state == "aggregated")
        self.database.write(update(ROUNDS).where(*closed).values(loss=loss, accuracy=accuracy))

    # -- the bandit ---------------------------------------------------------------------------------------------

    def choices_made(self, job: str, index: int, attempt: int, choices: Mapping[str, bytes]) -> None:
        """Enter why each device got its arm; the values are choices.Choice as MessagePack."""
        key = {"job": job, "round": index, "attempt": attempt}
        with self.database.transaction():
            self.database.write_many(
                _CHOSEN, [{**key, "device": device, "choice": choice} for device, choice in choices.items()]
            )

    def bandit_is(self, job: str, state: bytes) -> None:
        """Enter what a job's bandit has learned: a BanditState as MessagePack."""
        with self.database.transaction():
            self.database.write(_FORGET_BANDIT, {"of_job": job})
            self.database.write(_BANDIT, {"job": job, "state": state})
