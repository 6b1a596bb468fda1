"""Reports that overtake each other, as those over several connections do: each is believed once, in any order."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signing import FLEET, Fleet, fleet_of, reason_of

from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import topic_for
from edge_runtime.signing.verifier import Reason, Verifier

REPORT, STATE = topic_for(FLEET, "pi", "report"), topic_for(FLEET, "pi", "state")
REMEMBERED = 32


def server_of(fleet: Fleet) -> Verifier:
    """Return the server's verifier, which takes reports over several connections."""
    verifier = fleet.verifier(SERVER, "server")
    verifier.overtaken = frozenset({"report"})
    return verifier


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_in_any_order_each_report_of_a_start_is_believed_once(data: st.DataObject) -> None:
    """States and restarts in between; the other topics are decided as before, and nothing is believed twice."""
    fleet = fleet_of("pi")
    topics = data.draw(st.lists(st.sampled_from([STATE, REPORT]), min_size=1, max_size=12))
    boots = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(topics), max_size=len(topics))))
    sent = [
        (topic, fleet.signer("pi", f"boot-{boot}").seal(topic, bytes([index]), "server"))
        for index, (topic, boot) in enumerate(zip(topics, boots, strict=True))
    ]
    verifier, highest, taken = server_of(fleet), {}, set()
    for index in data.draw(st.lists(st.integers(0, len(sent) - 1), max_size=40)):
        topic, payload = sent[index]
        reason, last = reason_of(verifier, topic, payload), highest.get(topic, -1)
        is_of_this_start = last >= 0 and boots[index] == boots[last]
        if index > last or (topic == REPORT and is_of_this_start and index not in taken):
            assert reason is None
            highest[topic] = max(index, last)
            taken.add(index)
        elif index == last:
            assert reason is Reason.DUPLICATE
        else:
            assert reason in (Reason.REPLAYED, Reason.REORDERED)
            assert index not in taken or reason is Reason.REPLAYED


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
@given(st.data())
def test_a_report_that_many_others_overtake_is_not_believed_twice(data: st.DataObject) -> None:
    """Whatever is later than the memory reaches is refused, for it could be a replayed one."""
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot"), server_of(fleet)
    sent = [signer.seal(REPORT, bytes([index]), "server") for index in range(3 * REMEMBERED)]
    late = data.draw(st.lists(st.integers(0, 2 * REMEMBERED), min_size=len(sent), max_size=len(sent)))
    order = sorted(range(len(sent)), key=lambda index: (index + late[index], index))
    believed = []
    for place, index in enumerate(order):
        overtook = sum(other > index for other in order[:place])
        reason = reason_of(verifier, REPORT, sent[index])
        assert reason is not None or index not in believed
        assert reason is None or overtook >= REMEMBERED
        believed += [index] if reason is None else []
    assert not [index for index in order if reason_of(verifier, REPORT, sent[index]) is None]


def test_a_state_that_overtakes_a_report_and_one_connection_change_nothing() -> None:
    fleet = fleet_of("pi")
    signer, verifier, plain = fleet.signer("pi", "boot"), server_of(fleet), fleet.verifier(SERVER, "server")
    first, second = signer.seal(REPORT, b"1", "server"), signer.seal(REPORT, b"2", "server")
    state = signer.seal(STATE, b"3", "server")
    assert [reason_of(verifier, topic, one) for topic, one in ((STATE, state), (REPORT, second), (REPORT, first))] == [
        None
    ] * 3
    assert verifier.session_of("pi") == "boot"
    assert reason_of(plain, REPORT, second) is None
    assert reason_of(plain, REPORT, first) is Reason.REPLAYED, "over one connection nothing overtakes"


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_a_speaker_that_was_forgotten_is_not_believed_again(is_forgotten: bool) -> None:
    """After its release from quarantine a name's old reports could be replayed beneath the first new one."""
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot"), server_of(fleet)
    sent = [signer.seal(REPORT, bytes([index]), "server") for index in range(4)]
    assert reason_of(verifier, REPORT, sent[1]) is None
    if is_forgotten:
        verifier.forget("pi")
    assert reason_of(verifier, REPORT, sent[3]) is None
    assert reason_of(verifier, REPORT, sent[2]) is (Reason.REPLAYED if is_forgotten else None)
    assert reason_of(verifier, REPORT, sent[1]) is Reason.REPLAYED
