"""Signed messages: what is signed, what is refused and why, and that what is refused changes nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from signing import FLEET, Fleet, book_of, fleet_of, key_of, reason_of

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.message_base import ENVELOPE_BYTES
from edge_runtime.protocol.messages import LARGEST_MESSAGE_BYTES, MAX_PAYLOAD_BYTES, decode_message, encode_message
from edge_runtime.protocol.presence import DeviceState, Hello
from edge_runtime.protocol.signed import (
    LARGEST_SEQUENCE,
    SERVER,
    Envelope,
    decode_envelope,
    encode_envelope,
    route_of,
    signed_bytes,
)
from edge_runtime.protocol.topics import hello_topic, servers_topic, topic_for
from edge_runtime.signing.keys import KeyBook
from edge_runtime.signing.signer import ALGORITHM, der_signature
from edge_runtime.signing.verifier import Accepted, Reason, Refused, Verifier

FIXED = Envelope(
    key_id=bytes(range(8)),
    role="message",
    session="boot-1",
    answers="server-1",
    sequence=70_000,
    signature=bytes(range(64)),
    body=b"body",
)
# Signed once with the private key 0x5eed, on covey/v1/default/pi/report. What was signed once must verify for ever.
GOLDEN = (
    "89a474797065a67369676e6564a17601a66b65795f6964c4087dbe89271c41e300a4726f6c65a76d657373616765a7736573"
    "73696f6ea6626f6f742d31a7616e7377657273a87365727665722d31a873657175656e6365ce00011170a97369676e617475"
    "7265c4400639b3805297f085e10e8f87c7a8e64a4f574a93585b716f21586402bb427ebf72bda1782c7f95ce4c79eab02312"
    "9c593d76f8a9fe8ac6acc2cdd58ae0a644a2a4626f6479c404626f6479"
)
TOPIC = topic_for(FLEET, "pi", "report")
STATE = topic_for(FLEET, "pi", "state")
PLAN = topic_for(FLEET, "pi", "plan")
HELLO = hello_topic(FLEET)


# -- the envelope -------------------------------------------------------------------------------------------------


def test_golden_envelope() -> None:
    assert hashlib.sha256(encode_envelope(FIXED)).hexdigest()[:16] == "68387b33639d4383"
    assert hashlib.sha256(signed_bytes(FLEET, TOPIC, FIXED)).hexdigest()[:16] == "317825879fccfa77"
    no_answer = msgspec.structs.replace(FIXED, answers=None, role="will")
    assert hashlib.sha256(signed_bytes(FLEET, TOPIC, no_answer)).hexdigest()[:16] == "e6c3af469f8c16e8"


def test_what_was_signed_once_verifies_for_ever() -> None:
    key = ec.derive_private_key(0x5EED, ec.SECP256R1())
    book = KeyBook()
    book.add("pi", key.public_key())
    result = Verifier(SERVER, FLEET, "server-1", book).check(TOPIC, bytes.fromhex(GOLDEN))
    assert isinstance(result, Accepted)
    assert result.body == b"body"


def test_no_two_messages_have_the_same_signed_bytes() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"key_id": b"\1" * 8},
        {"role": "will"},
        {"session": "boot-2"},
        {"session": "boot-1s", "answers": "erver-1"},  # the same bytes in a row, cut elsewhere
        {"answers": None},
        {"sequence": 70_001},
        {"body": b"bodi"},
    ]
    seen = {signed_bytes(FLEET, TOPIC, msgspec.structs.replace(FIXED, **change)) for change in changes}
    seen |= {signed_bytes("other", TOPIC, FIXED), signed_bytes(FLEET, STATE, FIXED)}
    assert len(seen) == len(changes) + 2


@given(
    st.binary(max_size=2000),
    st.integers(0, LARGEST_SEQUENCE),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
)
def test_an_envelope_comes_back_and_takes_no_more_than_is_kept_free(body: bytes, sequence: int, session: str) -> None:
    envelope = msgspec.structs.replace(FIXED, body=body, sequence=sequence, session=session, answers=session)
    payload = encode_envelope(envelope)
    assert decode_envelope(payload) == envelope
    assert len(payload) - len(body) <= ENVELOPE_BYTES


def test_the_largest_message_fits_with_its_envelope() -> None:
    name = "n" * 63
    fleet = Fleet(book_of())
    fleet.numbers["pi"] = lambda: LARGEST_SEQUENCE
    payload = fleet.signer("pi", name).seal(TOPIC, bytes(LARGEST_MESSAGE_BYTES), name, "message")
    assert len(payload) <= MAX_PAYLOAD_BYTES
    with pytest.raises(ProtocolError, match="over the limit"):
        fleet.signer("pi", name).seal(TOPIC, bytes(MAX_PAYLOAD_BYTES), name)
    hello = Hello(epoch="e", covey_version="v" * LARGEST_MESSAGE_BYTES)
    with pytest.raises(ProtocolError, match=f"over the limit of {LARGEST_MESSAGE_BYTES}"):
        encode_message(hello)


def test_who_speaks_where() -> None:
    for kind in ("birth", "state", "profile", "report", "log", "released", "predicted"):
        route = route_of(FLEET, topic_for(FLEET, "pi", kind))
        assert route is not None
        assert (route.speaker, route.listener, route.kind) == ("pi", SERVER, kind)
    for kind in ("plan", "report/ack", "log/get", "release", "predict"):
        route = route_of(FLEET, topic_for(FLEET, "pi", kind))
        assert route is not None
        assert (route.speaker, route.listener, route.kind) == (SERVER, "pi", kind)
    route = route_of(FLEET, HELLO)
    assert route is not None
    assert (route.speaker, route.listener) == (SERVER, None)
    assert route_of(FLEET, servers_topic(FLEET)) is None
    assert route_of(FLEET, topic_for(FLEET, "pi", "probe")) is None
    # A device may be called hello or servers, and none can be called as the server is.
    assert route_of(FLEET, topic_for(FLEET, "hello", "state")) is not None
    with pytest.raises(ProtocolError):
        topic_for(FLEET, SERVER, "state")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "covey/v1/default",
        "covey/v1/other/pi/report",
        "covey/v1/default/pi",
        "covey/v1/default/pi/reports",
        "covey/v1/default/pi/report/",
        "covey/v1/default//report",
        "covey/v1/default/@server/report",
        "covey/v2/default/pi/report",
        "x/covey/v1/default/pi/report",
        "covey/v1/other/hello",
    ],
)
def test_other_topics_are_refused(topic: str) -> None:
    fleet = fleet_of("pi")
    payload = fleet.signer("pi", "boot").seal(topic, b"body", "server")
    assert reason_of(fleet.verifier(SERVER, "server"), topic, payload) is Reason.MISPLACED


# -- foreign, altered -----------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(st.data())
def test_a_message_with_any_byte_changed_is_refused(data: st.DataObject) -> None:
    fleet = fleet_of("pi")
    fleet.numbers["pi"] = lambda: data.draw(st.sampled_from([1, 200, 300, 70_000, 2**40, LARGEST_SEQUENCE]))
    verifier = fleet.verifier(SERVER, "server")
    payload = fleet.signer("pi", "boot").seal(TOPIC, data.draw(st.binary(max_size=300)), "server")
    position = data.draw(st.integers(0, len(payload) - 1))
    changed = bytearray(payload)
    changed[position] ^= data.draw(st.integers(1, 255))
    assert reason_of(verifier, TOPIC, bytes(changed)) is not None
    assert reason_of(verifier, TOPIC, payload) is None


@pytest.mark.parametrize("sequence", [1, 200, 300, 70_000])
def test_a_message_with_any_bit_changed_is_refused(sequence: int) -> None:
    fleet = fleet_of("pi")
    fleet.numbers["pi"] = lambda: sequence
    verifier = fleet.verifier(SERVER, "server")
    payload = fleet.signer("pi", "boot").seal(TOPIC, b"body", "server")
    for position in range(8 * len(payload)):
        changed = bytearray(payload)
        changed[position // 8] ^= 1 << position % 8
        assert isinstance(verifier.check(TOPIC, bytes(changed)), Refused), position
    assert reason_of(verifier, TOPIC, payload) is None


@given(st.binary(max_size=400), st.sampled_from([TOPIC, STATE, HELLO, PLAN]))
def test_garbage_is_refused(payload: bytes, topic: str) -> None:
    fleet = fleet_of("pi")
    listener = SERVER if topic in (TOPIC, STATE) else "pi"
    assert reason_of(fleet.verifier(listener, "server"), topic, payload) in (Reason.MALFORMED, Reason.UNSIGNED)


def test_nested_huge_and_cut_payloads_are_refused() -> None:
    fleet = fleet_of("pi")
    verifier = fleet.verifier(SERVER, "server")
    whole = fleet.signer("pi", "boot").seal(TOPIC, b"body", "server")
    for payload in (b"\x91" * 100_000, b"\x81\xa1a" * 40_000, bytes(MAX_PAYLOAD_BYTES + 1), b"\xdf\xff\xff\xff\xff"):
        assert reason_of(verifier, TOPIC, payload) is Reason.MALFORMED
    for end in range(1, len(whole)):
        assert isinstance(verifier.check(TOPIC, whole[:end]), Refused)
    assert reason_of(verifier, TOPIC, whole + b"\0") is Reason.MALFORMED


@pytest.mark.parametrize(
    ("canonical", "other"),
    [
        (b"\xa8sequence\xcd\x01\x2c", b"\xa8sequence\xd1\x01\x2c"),  # 300 with a sign: one byte differs
        (b"\xa8sequence\xcd\x01\x2c", b"\xa8sequence\xce\x00\x00\x01\x2c"),
        (b"\xa4body\xc4\x04", b"\xa4body\xc5\x00\x04"),
        (b"\xa1v\x01", b"\xa1v\xcc\x01"),
    ],
)
def test_an_envelope_has_one_encoding(canonical: bytes, other: bytes) -> None:
    fleet = fleet_of("pi")
    fleet.numbers["pi"] = lambda: 300
    payload = fleet.signer("pi", "boot").seal(TOPIC, b"body", "server")
    assert payload.count(canonical) == 1
    verifier = fleet.verifier(SERVER, "server")
    assert reason_of(verifier, TOPIC, payload.replace(canonical, other)) is Reason.MALFORMED
    assert reason_of(verifier, TOPIC, payload) is None


def test_an_unsigned_message_is_named_as_one() -> None:
    unsigned = encode_message(DeviceState(state="online", boot_id="boot", epoch="epoch"))
    assert reason_of(fleet_of("pi").verifier(SERVER, "server"), STATE, unsigned) is Reason.UNSIGNED


@pytest.mark.parametrize("speaker", ["other", SERVER, "stranger"])
def test_nobody_speaks_for_a_device(speaker: str) -> None:
    fleet = fleet_of("pi", "other")
    payload = fleet.signer(speaker, "boot").seal(TOPIC, b"body", "server")
    assert reason_of(fleet.verifier(SERVER, "server"), TOPIC, payload) is Reason.FOREIGN


@pytest.mark.parametrize(
    "topic", [HELLO, PLAN, topic_for(FLEET, "pi", "report/ack"), topic_for(FLEET, "pi", "log/get")]
)
def test_no_device_speaks_for_the_server(topic: str) -> None:
    fleet = fleet_of("pi", "other")
    for speaker in ("pi", "other"):
        payload = fleet.signer(speaker, "boot").seal(topic, b"body", "boot")
        assert reason_of(fleet.verifier("pi", "boot"), topic, payload) is Reason.FOREIGN


def test_the_name_of_another_key_does_not_help() -> None:
    fleet = fleet_of("pi", "other")
    payload = fleet.signer("other", "boot").seal(TOPIC, b"body", "server")
    pi = decode_envelope(fleet.signer("pi", "boot").seal(TOPIC, b"body", "server"))
    named = encode_envelope(msgspec.structs.replace(decode_envelope(payload), key_id=pi.key_id))
    assert reason_of(fleet.verifier(SERVER, "server"), TOPIC, named) is Reason.ALTERED


@given(st.sampled_from(["birth", "state", "profile", "report", "log"]), st.sampled_from(["birth", "state", "report"]))
def test_a_message_moved_to_another_topic_or_fleet_is_refused(signed_on: Any, moved_to: Any) -> None:
    fleet = fleet_of("pi", "other")
    fleet.book.add("other", key_of("pi").public_key())  # even a key that two devices share does not move a message
    verifier = fleet.verifier(SERVER, "server")
    payload = fleet.signer("pi", "boot").seal(topic_for(FLEET, "pi", signed_on), b"body", "server")
    if signed_on != moved_to:
        assert reason_of(verifier, topic_for(FLEET, "pi", moved_to), payload) is Reason.ALTERED
    assert reason_of(verifier, topic_for(FLEET, "other", moved_to), payload) is Reason.ALTERED
    elsewhere = Verifier(SERVER, "elsewhere", "server", fleet.book)
    assert reason_of(elsewhere, topic_for("elsewhere", "pi", signed_on), payload) is Reason.ALTERED
    assert reason_of(elsewhere, topic_for(FLEET, "pi", signed_on), payload) is Reason.MISPLACED


def test_a_plan_for_one_device_is_none_for_another() -> None:
    fleet = fleet_of("pi", "other")
    payload = fleet.signer(SERVER, "server").seal(PLAN, b"body", "boot")
    verifier = fleet.verifier("other", "boot")
    assert reason_of(verifier, PLAN, payload) is Reason.MISPLACED
    assert reason_of(verifier, topic_for(FLEET, "other", "plan"), payload) is Reason.ALTERED


# -- replayed, reordered, stale -------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.data())
def test_any_order_of_delivery_accepts_each_topic_ascending_and_nothing_twice(data: st.DataObject) -> None:
    """Every delivery, whatever is repeated, late or left out, is decided as the numbers alone say."""
    fleet = fleet_of("pi")
    kinds = data.draw(st.lists(st.sampled_from(["state", "report"]), min_size=1, max_size=12))
    boots = sorted(data.draw(st.lists(st.integers(0, 2), min_size=len(kinds), max_size=len(kinds))))
    sent = []
    for index, (kind, boot) in enumerate(zip(kinds, boots, strict=True)):  # restarts in between
        topic = topic_for(FLEET, "pi", kind)  # type: ignore[arg-type]
        sent.append((topic, fleet.signer("pi", f"boot-{boot}").seal(topic, bytes([index]), "server")))
    verifier, highest, taken = fleet.verifier(SERVER, "server"), {}, set()
    for index in data.draw(st.lists(st.integers(0, len(sent) - 1), max_size=40)):
        topic, payload = sent[index]
        reason = reason_of(verifier, topic, payload)
        if index > highest.get(topic, -1):
            assert reason is None
            highest[topic] = index
            taken.add(index)
        elif index == highest[topic]:
            assert reason is Reason.DUPLICATE
        else:
            assert reason is (
                Reason.REPLAYED if index in taken or index < min_of(taken, sent, topic) else Reason.REORDERED
            )


def min_of(taken: set[int], sent: list[tuple[str, bytes]], topic: str) -> int:
    """Return the first message of a topic that was accepted: what is before it may be from any time."""
    return min(index for index in taken if sent[index][0] == topic)


def test_what_is_older_than_memory_counts_as_replayed() -> None:
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot"), fleet.verifier(SERVER, "server")
    sent = [signer.seal(TOPIC, b"", "server") for _ in range(100)]
    left_out = sent[::10]
    for payload in sent:
        if payload not in left_out:
            assert reason_of(verifier, TOPIC, payload) is None
    assert reason_of(verifier, TOPIC, left_out[0]) is Reason.REPLAYED
    assert reason_of(verifier, TOPIC, left_out[-1]) is Reason.REORDERED


def test_topics_do_not_wait_for_each_other() -> None:
    fleet = fleet_of("pi")
    signer, verifier = fleet.signer("pi", "boot"), fleet.verifier(SERVER, "server")
    first, second = signer.seal(TOPIC, b"1", "server"), signer.seal(STATE, b"2", "server")
    assert reason_of(verifier, STATE, second) is None
    assert reason_of(verifier, TOPIC, first) is None


def test_what_was_recorded_before_a_restart_of_the_server_is_stale() -> None:
    fleet = fleet_of("pi")
    signer = fleet.signer("pi", "boot")
    old = [signer.seal(TOPIC, b"old", answers) for answers in ("server-1", None)]
    assert reason_of(fleet.verifier(SERVER, "server-1"), TOPIC, old[0]) is None
    restarted = fleet.verifier(SERVER, "server-2")
    assert [reason_of(restarted, TOPIC, payload) for payload in old] == [Reason.STALE] * 2
    assert reason_of(restarted, TOPIC, signer.seal(TOPIC, b"new", "server-2")) is None


def test_what_was_recorded_before_a_restart_of_the_device_is_stale() -> None:
    fleet = fleet_of("pi")
    signer = fleet.signer(SERVER, "server")
    for kind in ("plan", "report/ack", "log/get", "release", "predict"):
        topic = topic_for(FLEET, "pi", kind)  # type: ignore[arg-type]
        old = signer.seal(topic, b"old", "boot-1")
        assert reason_of(fleet.verifier("pi", "boot-1"), topic, old) is None
        assert reason_of(fleet.verifier("pi", "boot-2"), topic, old) is Reason.STALE


def test_the_last_hello_is_believed_once_after_a_restart_and_no_older_one(tmp_path: Path) -> None:
    fleet = fleet_of("pi")
    hellos = [fleet.signer(SERVER, f"server-{index}").seal(HELLO, b"%d" % index) for index in range(3)]
    first = fleet.verifier("pi", "boot-1", tmp_path)
    assert reason_of(first, HELLO, hellos[0]) is None
    assert reason_of(first, HELLO, hellos[1]) is None
    assert first.session_of(SERVER) == "server-1"
    for boot in ("boot-2", "boot-3"):
        again = fleet.verifier("pi", boot, tmp_path)
        assert reason_of(again, HELLO, hellos[0]) is Reason.REPLAYED
        assert reason_of(again, HELLO, hellos[1]) is None
        assert reason_of(again, HELLO, hellos[1]) is Reason.DUPLICATE
    assert reason_of(again, HELLO, hellos[2]) is None
    assert reason_of(fleet.verifier("pi", "boot-4", tmp_path), HELLO, hellos[1]) is Reason.REPLAYED


def test_a_signature_is_one_that_any_library_reads() -> None:
    fleet = fleet_of("pi")
    envelope = decode_envelope(fleet.signer("pi", "boot").seal(TOPIC, b"body", "server"))
    key = key_of("pi").public_key()
    key.verify(der_signature(envelope.signature), signed_bytes(FLEET, TOPIC, envelope), ALGORITHM)
    assert decode_message(encode_message(DeviceState(state="online", boot_id="b")), DeviceState).state == "online"
