"""Private rows stay on the device: whatever is wrong with them, no word of them is in a message."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import bench_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.kept_log import LOG_FILE, keeping_log
from edge_runtime.data.examples import DataConfig, read_prompts
from edge_runtime.errors import DataError
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import decode_device_report, decode_message, encode_message
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.reports import DeviceReport, PlanRefused, RoundReport
from edge_runtime.protocol.side_messages import MOST_LINES, LogRequest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench import Bench

    from edge_runtime.bundle.folder import Bundle

MARKER = "marker-of-a-patient"
ATTEMPTS = itertools.count()
GOOD = '{"text": "a good film", "label": "good"}'
# Lines that no device can train on; each has private words in it.
FAULTY = {
    "a text as label": json.dumps({"text": "yes", "label": f"words of {MARKER}"}),
    "a nested label": json.dumps({"text": MARKER, "label": {MARKER: [MARKER]}}),
    "a nested text": json.dumps({"text": {MARKER: MARKER}, "label": "good"}),
    "no label": json.dumps({"text": MARKER}),
    "an empty text": json.dumps({"text": " ", "label": "good", MARKER: MARKER}),
    "an array": json.dumps([MARKER]),
    "no JSON": f'{{"text": "{MARKER}", {MARKER}',
    "a comma too many": json.dumps({"text": MARKER, "label": "good"}) + ",",
    "one field twice": f'{{"text": "{MARKER}", "text": "{MARKER}", "label": "good"}}',
    "a label with decimals": json.dumps({"text": MARKER, "label": 1.0}),
    "other fields": json.dumps({f"the text of {MARKER}": "a film", "Label": MARKER}),
}
# Lines that are left out, so that training goes on; each has private words in it.
LEFT_OUT = {
    "a cut emoji": json.dumps({"text": f"{MARKER} \ud83d", "label": "good"}).encode(),
    "the first bytes of an emoji": f'{{"text": "{MARKER} '.encode() + b'\xf0\x9f\x98", "label": "good"}',
    "a label that is half a character": json.dumps({"text": MARKER, "label": f"{MARKER} \ud83d"}).encode(),
    "a deep array": f'{{"text": "{MARKER}", "label": '.encode() + b"[" * 100_000,
    "NUL bytes": f'{{"text": "{MARKER}'.encode() + bytes(100) + b'", "label": "good"}',
}
CSV = {
    "no header": f"good,{MARKER}\ngood,{MARKER} too\n".encode(),
    "a header in capitals": f"TEXT,Label,{MARKER}\na film,good,{MARKER}\n".encode(),
    "two columns of one name": f"text,text,label\n{MARKER},{MARKER},good\n".encode(),
    "a quote within a text": f'text,label\n"a {MARKER} "b" c",good\n'.encode(),
    "an encoding of wide characters, cut": f"text,label\n{MARKER},good\n".encode("utf-16") + b"\0",
    "JSON": f'{{"text": "{MARKER}", "label": "good"}}\n'.encode(),
    "swapped columns": f"text,label\ngood,{MARKER}\n".encode(),
    "an unclosed quote": f'text,label\n"{MARKER},good\n'.encode(),
    "a value too many": f"text,label\na film,good,{MARKER}\n".encode(),
    "a header that is a row": f"{MARKER},label\na film,good\n".encode(),
    "another encoding": f"text,label\n{MARKER}\x92s,good\n".encode("latin-1"),
}


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def said(bench: Bench, file: str, content: bytes) -> tuple[DeviceReport, DeviceState]:
    """Give a device with these rows a plan; return its last report and state after a look at all that it published."""
    path = bench.root / file
    path.write_bytes(content)
    listener = bench.hub.join()
    listener.subscribe("covey/v1/#")
    config = msgspec.structs.replace(bench.config, data=DataConfig(str(path)))
    transport = bench.hub.join()
    with keeping_log(bench.store.root) as log:
        agent = Agent(config, bench.store, transport, "boot", log=log)
        plan = bench.train_plan(bench.initial(), attempt=next(ATTEMPTS))
        bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
        for _ in ("the connection", "the plan"):
            agent.serve_waiting()
        bench.hub.publish(
            bench.topic("log/get"), encode_message(LogRequest(lines=MOST_LINES, follow_s=0)), retain=False
        )
        agent.serve_waiting()
    assert MARKER.encode() not in (bench.store.root / LOG_FILE).read_bytes()
    bench.hub.leave(transport)
    bench.hub.leave(listener)
    reports, states, logs = [], [], 0
    while (event := listener.receive(0)) is not None:
        if isinstance(event, Message):
            assert MARKER.encode() not in event.payload, event.topic
            if event.topic == bench.topic("state"):
                states.append(decode_message(event.payload, DeviceState))
            logs += event.topic == bench.topic("log")
            if event.topic == bench.topic("report"):
                reports.append(decode_device_report(event.payload))
    assert logs
    return reports[-1], states[-1]


def refusal(bench: Bench, file: str, content: bytes) -> PlanRefused:
    """Give a device with these rows a plan, see that it becomes ineligible, and return its refusal."""
    report, state = said(bench, file, content)
    assert isinstance(report, PlanRefused)
    assert state.ineligible is not None
    assert state.ineligible.startswith("its rows are unusable: ")
    return report


@pytest.mark.parametrize("fault", FAULTY)
def test_a_refusal_says_no_word_of_a_faulty_line(bench: Bench, fault: str) -> None:
    refused = refusal(bench, "rows.jsonl", f"{GOOD}\n{FAULTY[fault]}\n".encode())
    assert refused.message


@pytest.mark.parametrize("fault", CSV)
def test_a_refusal_says_no_word_of_a_faulty_table(bench: Bench, fault: str) -> None:
    assert refusal(bench, "rows.csv", CSV[fault]).code == DataError.exit_code


@pytest.mark.parametrize("fault", LEFT_OUT)
def test_a_row_that_cannot_be_encoded_is_left_out_and_training_goes_on(bench: Bench, fault: str) -> None:
    report, state = said(bench, "rows.jsonl", b"\n".join([GOOD.encode(), LEFT_OUT[fault], GOOD.encode()]))
    assert isinstance(report, RoundReport)
    assert report.examples == 2
    assert state.ineligible is None
    refused = refusal(bench, "rows.jsonl", LEFT_OUT[fault])
    assert refused.message.startswith("none of its 1 row can be used, see line 1")


@pytest.mark.parametrize("name", ["array.json", "pretty.json"])
def test_a_refusal_says_no_word_of_another_kind_of_json(bench: Bench, name: str) -> None:
    rows = [{"text": MARKER, "label": "good"}, {"text": MARKER, "label": MARKER}]
    refused = refusal(bench, name, json.dumps(rows, indent=2 if name == "pretty.json" else None).encode())
    assert refused.message.startswith("1 of 2 rows are wrong, the first in object 2")


PIECES = [*(line.encode() for line in FAULTY.values()), *LEFT_OUT.values(), *CSV.values(), GOOD.encode(), b"text,label"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=4),
    end=st.sampled_from([b"\n", b"\r\n", b"\r", b","]),
    suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "xlsx"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04", b"\x92"]),
)
def test_no_file_whatever_it_holds_says_a_word(
    bench: Bench, pieces: list[bytes], end: bytes, suffix: str, mark: bytes
) -> None:
    report, _ = said(bench, f"rows.{suffix}", mark + end.join(pieces))
    assert isinstance(report, RoundReport | PlanRefused)
    assert not isinstance(report, PlanRefused) or report.code == DataError.exit_code


def test_a_refusal_counts_the_lines_and_names_the_command(bench: Bench) -> None:
    lines = [GOOD, FAULTY["no label"], GOOD, FAULTY["a text as label"]]
    refused = refusal(bench, "rows.jsonl", "\n".join(lines).encode())
    assert refused.message.startswith("2 of 4 rows are wrong, the first in lines 2, 4")
    assert "covey-edge data check" in refused.message
    assert refusal(bench, "rows.jsonl", b"").message.startswith("it has no rows")


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.sampled_from([*FAULTY.values(), GOOD]), min_size=1, max_size=6))
def test_no_mixture_of_faults_says_a_word(bench: Bench, lines: list[str]) -> None:
    refusal(bench, "rows.jsonl", "\n".join([*lines, FAULTY["no label"]]).encode())


def test_a_completion_without_a_token_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": MARKER, "completion": [MARKER]}) + "\n")
    with pytest.raises(DataError) as caught:
        read_prompts(DataConfig(str(path)))
    assert MARKER not in caught.value.public
    assert caught.value.public.startswith("1 of 1 rows are wrong, the first in line 1")


def test_any_error_within_a_plan_is_a_refusal_that_names_its_kind_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise KeyError(MARKER)

    monkeypatch.setattr("edge_runtime.agent.trainer.Trainer.prepare", fail)
    refused, _ = said(bench, "rows.jsonl", f"{GOOD}\n".encode())
    assert isinstance(refused, PlanRefused)
    assert refused.message.startswith("this is a fault of Covey (KeyError)")
