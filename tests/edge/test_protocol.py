"""Messages: golden encodings, borders, topics."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from profiles import PROFILE, SHA

from edge_runtime.bundle.memory_need import LevelNeed
from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.messages import (
    MAX_PAYLOAD_BYTES,
    PROTOCOL_VERSION,
    AnyMessage,
    decode_message,
    encode_message,
)
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, BlobRef, SyncPlan, TrainPlan
from edge_runtime.protocol.predictions import Predict, Predicted
from edge_runtime.protocol.presence import Birth, Capability, DeviceState, Hello, ProfileMessage
from edge_runtime.protocol.reports import DeltaReport, PlanAccepted, PlanRefused, ReportAck, RoundReport, Synced
from edge_runtime.protocol.side_messages import LogLine, LogLines, LogRequest, Release, Released, ServerPresent, TooOld
from edge_runtime.protocol.step_rule import StepRule
from edge_runtime.protocol.topics import device_of, hello_topic, servers_topic, topic_for

REPORT = RoundReport(
    job="job",
    round=1,
    attempt=0,
    device="pi",
    adapter_sha256=SHA,
    scalars=b"\0" * 8,
    examples=10,
    loss=0.5,
    seconds=1.5,
    front_passes=2,
    back_passes=4,
    front_seconds=0.5,
    back_seconds=1.0,
    link_bytes_per_s=1e6,
    replay_parameters_per_s=None,
    blob_bytes=0,
)
PLAN = TrainPlan(
    job="job",
    job_seed=1,
    round=2,
    attempt=0,
    bundle_sha256=SHA,
    adapter=AdapterRef(BlobRef(SHA, 400), BlobRef(SHA, 40), SHA),
    rule=StepRule(),
    split=5,
    steps=4,
    batch_size=8,
    mean_square=None,
    privacy=None,
    deadline_s=60.0,
    blob_url="http://:8080/blobs",
)
MESSAGES: list[tuple[AnyMessage, str]] = [
    (PLAN, "44aac40c8504e2b9"),
    (REPORT, "c91687677ae3d739"),
    (
        Birth(
            device="pi",
            boot_id="1",
            connection=2,
            epoch="e",
            covey_version="0.1.0",
            python_version="3.11",
            machine="aarch64",
            runtimes={"numpy": "2"},
            methods=["spzo"],
            rows=None,
            bundle_sha256=None,
            adapter_sha256=SHA,
            capability=Capability(kind="backprop", levels=[LevelNeed(3, 9, 2)], bytes_free=None),
            hostname="kitchen",
            address="192.0.2.7",
        ),
        "4348506c2b28acf2",
    ),
    (Hello(epoch="e", covey_version="0.1.0"), "3d2e2bda8cd165e8"),
    (DeviceState(state="lost", boot_id="1"), "3eea5dcb08d7c719"),
    (DeviceState(state="online", boot_id="1", ineligible="90 °C, above 85"), "11a2ba26a28d2953"),
    (ProfileMessage(device="pi", profile=PROFILE), "7b21dcb759f7e538"),
    (ReportAck(job="job", round=1, attempt=0, outcome="taken"), "6c7e6c4f8db0fb58"),
    (LogRequest(lines=20, follow_s=60.0), "095b41da9da53c43"),
    (
        LogLines(device="pi", boot_id="1", reason="crash", dropped=2, lines=[LogLine(7, 1.5, "INFO", "a line")]),
        "e7acb3c706b38ec2",
    ),
    (
        Release(
            rollout=3,
            kind="adapter",
            step="switch",
            sha256=SHA,
            size_bytes=400,
            bundle_sha256=SHA,
            blob_url="http://:8080/blobs",
            file_name=None,
        ),
        "7376179de0febd08",
    ),
    (Released(rollout=3, device="pi", kind="bundle", outcome="failed", code=5, reason="why"), "1b660f9182987c46"),
    (Predict(request="r", patience_s=60.0, body=b'{"text": "a"}'), "a28085e3831adb78"),
    (Predicted(request="r", device="pi", code=0, what="", hint="", body=b'{"predictions": []}'), "55d872cfcae5c4db"),
    (ServerPresent(server_id="1", hostname="rack", age_s=2.5, asks=True), "bf14b8b7ca1050bc"),
    (PlanAccepted(job="job", round=1, attempt=0, device="pi"), "b8aa8af59902fc5b"),
    (PlanRefused(job="job", round=1, attempt=0, device="pi", code=4, message="m"), "c0a4da7fe05c8c83"),
    (Synced(job="job", round=1, device="pi", adapter_sha256=SHA, blob_bytes=3), "3c4fb9a63b69b53e"),
    (
        SyncPlan(
            job="job",
            round=1,
            bundle_sha256=SHA,
            adapter=AdapterRef(BlobRef(SHA, 4), None, None),
            final=True,
            blob_url="http://h/blobs",
        ),
        "c7e2597609d7fb5f",
    ),
    (
        BackpropPlan(
            job="job",
            job_seed=1,
            round=2,
            attempt=0,
            bundle_sha256=SHA,
            adapter=AdapterRef(BlobRef(SHA, 400), None, None),
            stld=Stld(),
            level=3,
            deadline_s=60.0,
            blob_url="http://:8080/blobs",
        ),
        "eedf0199b6aa24cd",
    ),
    (
        DeltaReport(
            job="job",
            round=1,
            attempt=0,
            device="pi",
            adapter_sha256=SHA,
            delta=BlobRef(SHA, 400),
            layers=[0, 2],
            personal_layers=1,
            level=3,
            examples=10,
            loss=0.5,
            seconds=1.5,
            peak_rss_bytes=None,
            link_bytes_per_s=1e6,
            replay_parameters_per_s=None,
            blob_bytes=0,
        ),
        "0d758301cc37da25",
    ),
    (TooOld(job="job", bundle_sha256=SHA, reason="onnxruntime 1.17.3 is too old"), "f2eec9b61c6765ee"),
]


@pytest.mark.parametrize(("message", "golden"), MESSAGES, ids=lambda value: type(value).__name__)
def test_golden_encodings(message: AnyMessage, golden: str) -> None:
    """Pinned: what devices in the field send and expect. A change needs a new protocol version."""
    import hashlib

    payload = encode_message(message)
    assert hashlib.sha256(payload).hexdigest()[:16] == golden
    assert decode_message(payload, type(message)) == message


def test_messages_say_what_they_are() -> None:
    fields = msgspec.msgpack.decode(encode_message(REPORT))
    assert fields["type"] == "report"
    assert fields["v"] == PROTOCOL_VERSION


def test_another_version_is_named() -> None:
    fields = msgspec.msgpack.decode(encode_message(REPORT)) | {"v": 1}
    with pytest.raises(ProtocolError, match="protocol version 1, this Covey reads version 5"):
        decode_message(msgspec.msgpack.encode(fields), RoundReport)


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"round": -1},
        {"scalars": "text"},
        {"adapter_sha256": "xyz"},
        {"device": "a/b"},
        {"examples": 0},
        {"type": "birth"},
        {"surprise": 1},
        {"seconds": -1.0},
        {"loss": "low"},
        {"replay_parameters_per_s": 0.0},
    ],
    ids=str,
)
def test_wrong_fields_are_refused(change: dict[str, object]) -> None:
    fields = msgspec.msgpack.decode(encode_message(REPORT)) | change
    with pytest.raises(ProtocolError, match="not valid"):
        decode_message(msgspec.msgpack.encode(fields), RoundReport)


@given(data=st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_message(data, TrainPlan)


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_mutated_plan_is_a_plan_or_an_error(position: int, value: int) -> None:
    payload = bytearray(encode_message(PLAN))
    payload[position % len(payload)] = value
    try:
        assert isinstance(decode_message(bytes(payload), TrainPlan), TrainPlan)
    except ProtocolError as error:
        assert error.hint  # noqa: PT017 either is right; which one depends on the byte


def test_sizes_are_bounded() -> None:
    big = msgspec.structs.replace(REPORT, scalars=b"\0" * (MAX_PAYLOAD_BYTES + 1))
    with pytest.raises(ProtocolError, match="limit"):
        encode_message(big)
    with pytest.raises(ProtocolError, match="limit"):
        decode_message(b"\0" * (MAX_PAYLOAD_BYTES + 1), RoundReport)


@given(scalars=st.integers(1, 24 * 1024))
def test_a_report_costs_four_bytes_a_scalar_and_little_more(scalars: int) -> None:
    longest = "d" * 63
    report = msgspec.structs.replace(
        REPORT,
        scalars=b"\0" * (4 * scalars),
        job=longest,
        device=longest,
        round=2**40,
        attempt=2**40,
        examples=2**40,
        front_passes=2**40,
        back_passes=2**40,
        blob_bytes=2**40,
    )
    assert len(encode_message(report)) <= 4 * scalars + 512


def test_topics() -> None:
    assert topic_for("lab", "pi-1", "report/ack") == "covey/v1/lab/pi-1/report/ack"
    assert topic_for("lab", "+", "birth").count("/") <= 7
    assert device_of("covey/v1/lab/pi-1/birth") == "pi-1"
    assert hello_topic("lab") == "covey/v1/lab/hello"
    assert servers_topic("lab") == "covey/v1/lab/servers"
    for name in ("", "a/b", "#", "a b", "-a", "x" * 64, "ü"):
        with pytest.raises(ProtocolError, match="cannot be the name"):
            topic_for("lab", name, "plan")
