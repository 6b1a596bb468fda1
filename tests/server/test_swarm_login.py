"""Why a broker does not let a session in: at its limit, it looks to the others as if something else were wrong."""

from __future__ import annotations

import pytest

from edge_runtime.network.cause import Place
from server.swarm.login import FATAL, SILENCE, answered, unanswered

PLACE = Place("broker", "broker", 1883)
NOT_AUTHORISED, BAD_PASSWORD = 135, 134


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "closes further connections without an answer"),
        (ConnectionResetError(), "closes further connections without an answer"),
        (SILENCE, "takes further connections and never answers them"),
    ],
)
def test_while_others_are_in_a_login_without_an_answer_is_a_limit(error: BaseException | None, words: str) -> None:
    full, alone = unanswered(error, PLACE, connected=3), unanswered(error, PLACE, connected=0)
    assert full.kind == "unavailable"
    assert full.finding.startswith(f"broker:1883 {words}, while others stay: it has as many as it may take")
    assert ("too much to do" in full.finding) == (error is SILENCE)
    assert "max_connections" in full.remedy
    assert "LimitNOFILE" in full.remedy
    assert alone.kind == ("silent" if error is SILENCE else "closed")


def test_a_broker_that_is_gone_is_not_at_its_limit() -> None:
    assert unanswered(ConnectionRefusedError(), PLACE, connected=3).kind == "refused"


def test_not_authorised_is_a_limit_only_where_others_are_in_with_the_same_rights() -> None:
    assert answered(NOT_AUTHORISED, "Not authorized", PLACE, "pi", "id", connected=3).kind == "unavailable"
    alone = answered(NOT_AUTHORISED, "Not authorized", PLACE, "pi", "id", connected=0)
    assert alone.kind in FATAL
    assert "set_vhost_limits" in alone.remedy
    wrong = answered(BAD_PASSWORD, "Bad user name or password", PLACE, "pi", "id", connected=3)
    assert wrong.kind in FATAL
    assert "set_vhost_limits" not in wrong.remedy
