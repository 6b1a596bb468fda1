"""Private rows stay on the device: whatever is wrong with them, no word of them is in a message."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import bench_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.agent.agent import Agent
from edge_runtime.data.examples import DataConfig, read_completions
from edge_runtime.errors import DataError
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import PlanRefused, decode_device_report, encode_message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from bench import Bench

    from edge_runtime.bundle.folder import Bundle

MARKER = "marker-of-a-patient"
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
    "a cut emoji": json.dumps({"text": f"{MARKER} \ud83d", "label": "good"}),
    "a deep array": f'{{"text": "{MARKER}", "label": ' + "[" * 100_000,
}
CSV = {
    "an unclosed quote": f'text,label\n"{MARKER},good\n'.encode(),
    "a value too many": f"text,label\na film,good,{MARKER}\n".encode(),
    "a header that is a row": f"{MARKER},label\na film,good\n".encode(),
    "another encoding": f"text,label\n{MARKER}\x92s,good\n".encode("latin-1"),
}


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def refusal(bench: Bench, file: str, content: bytes) -> PlanRefused:
    """Give a device with these rows a plan; return its refusal after a look at all that it published."""
    path = bench.root / file
    path.write_bytes(content)
    listener = bench.hub.join()
    listener.subscribe("covey/v1/#")
    config = msgspec.structs.replace(bench.config, data=DataConfig(str(path)))
    transport = bench.hub.join()
    agent = Agent(config, bench.store, transport, "boot")
    bench.hub.publish(bench.topic("plan"), encode_message(bench.train_plan(bench.initial())), retain=False)
    for _ in ("the connection", "the plan"):
        agent.serve_waiting()
    bench.hub.leave(transport)
    bench.hub.leave(listener)
    reports = []
    while (event := listener.receive(0)) is not None:
        if isinstance(event, Message):
            assert MARKER.encode() not in event.payload, event.topic
            if event.topic == bench.topic("report"):
                reports.append(decode_device_report(event.payload))
    assert isinstance(reports[-1], PlanRefused)
    return reports[-1]


@pytest.mark.parametrize("fault", FAULTY)
def test_a_refusal_says_no_word_of_a_faulty_line(bench: Bench, fault: str) -> None:
    refused = refusal(bench, "rows.jsonl", f"{GOOD}\n{FAULTY[fault]}\n".encode())
    assert refused.message


@pytest.mark.parametrize("fault", CSV)
def test_a_refusal_says_no_word_of_a_faulty_table(bench: Bench, fault: str) -> None:
    assert refusal(bench, "rows.csv", CSV[fault]).code == DataError.exit_code


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
        read_completions(path)
    assert MARKER not in caught.value.public
    assert caught.value.public.startswith("1 of 1 rows are wrong, the first in line 1")


def test_any_error_within_a_plan_is_a_refusal_that_names_its_kind_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise KeyError(MARKER)

    monkeypatch.setattr("edge_runtime.agent.trainer.Trainer.prepare", fail)
    refused = refusal(bench, "rows.jsonl", f"{GOOD}\n".encode())
    assert refused.message.startswith("this is a fault of Covey (KeyError)")
