"""Traces of rounds: the spans that events become, and when they are made at all."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from edge_runtime.errors import ConfigError
from server import events
from server.commands import tracing
from server.commands.tracing import is_wanted
from server.traces.round_spans import RoundSpans

ROUND: list[events.Event] = [
    events.Waiting(online=1, needed=2),
    events.RoundOpened(round=0, attempt=0, devices=["a", "b"], arms={"a": "level 2", "b": "split 4 x 8"}),
    events.ReportTaken(round=0, device="a", loss=0.6, seconds=2.0, bytes_up=300),
    events.OfferFailed(round=0, device="b", reason="lost"),
    events.RoundClosed(round=0, reports=1, adapter_sha256="ab" * 32),
    events.Evaluated(round=0, loss=0.65, accuracy=0.61),
]


class Traced:
    """Takes events, one a second of a clock that tests turn, and keeps the spans."""

    def __init__(self) -> None:
        self.exporter, self.second = InMemorySpanExporter(), 0
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.spans = RoundSpans(provider.get_tracer("test"), lambda: self.second * 10**9)

    def take(self, *taken: events.Event, job: str | None = "reviews") -> None:
        for event in taken:
            self.second += 1
            self.spans.take(job, event)

    def finished(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def times(self) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for span in self.finished():
            assert span.start_time is not None
            assert span.end_time is not None
            found.setdefault(span.name, []).append((span.start_time // 10**9, span.end_time // 10**9))
        return found


def test_a_round_is_one_trace_from_plan_to_evaluation() -> None:
    traced = Traced()
    traced.take(*ROUND)
    spans = traced.finished()
    assert traced.times() == {
        "covey.plan": [(1, 2)],
        "covey.report": [(2, 3), (2, 4)],
        "covey.aggregation": [(3, 5)],
        "covey.round": [(1, 5)],
        "covey.evaluation": [(5, 6)],
    }
    assert len({span.context.trace_id for span in spans if span.context}) == 1
    root = next(span for span in spans if span.name == "covey.round")
    assert root.parent is None
    assert {span.parent.span_id for span in spans if span.parent} == {root.context.span_id if root.context else 0}
    for span in spans:
        assert (span.attributes or {})["covey.job"] == "reviews"
        assert (span.attributes or {})["covey.round"] == 0
    good, bad = (span for span in spans if span.name == "covey.report")
    assert dict(good.attributes or {}) == {
        "covey.job": "reviews",
        "covey.round": 0,
        "covey.attempt": 0,
        "covey.device": "a",
        "covey.arm": "level 2",
        "covey.seconds": 2.0,
        "covey.bytes_up": 300,
        "covey.train_loss": 0.6,
    }
    assert (bad.status.status_code, bad.status.description) == (StatusCode.ERROR, "lost")
    assert (bad.attributes or {})["covey.arm"] == "split 4 x 8"


def test_an_attempt_that_is_given_up_ends_with_an_error_and_the_next_is_a_trace_of_its_own() -> None:
    traced = Traced()
    traced.take(ROUND[1], events.RoundAbandoned(round=0, attempt=0, reports=0))
    traced.take(events.RoundOpened(round=0, attempt=1, devices=["a"]), *ROUND[2:3], *ROUND[4:])
    rounds = [span for span in traced.finished() if span.name == "covey.round"]
    assert [(span.status.status_code, span.status.description) for span in rounds] == [
        (StatusCode.ERROR, "too few reports"),
        (StatusCode.UNSET, None),
    ]
    assert [(span.attributes or {})["covey.attempt"] for span in rounds] == [0, 1]
    assert len({span.context.trace_id for span in rounds if span.context}) == 2


@pytest.mark.parametrize(
    "end", [events.JobChanged(job="reviews", state="stopped"), None], ids=["the job is stopped", "the server ended"]
)
def test_an_open_round_is_ended_with_what_ended_it(end: events.Event | None, request: pytest.FixtureRequest) -> None:
    traced = Traced()
    traced.take(*ROUND[1:3])
    if end is None:
        traced.spans.end()
    else:
        traced.take(end)
    (span,) = (span for span in traced.finished() if span.name == "covey.round")
    assert span.status.description == request.node.callspec.id


def test_what_belongs_to_no_known_round_makes_no_span() -> None:
    traced = Traced()
    traced.take(ROUND[2], ROUND[4])
    traced.take(*(events.Evaluated(round=index, loss=0.7, accuracy=0.5) for index in (None, 7)))
    traced.take(events.DeviceChanged(device="a", state="online"), job=None)
    assert [span.name for span in traced.finished()] == []


def test_two_jobs_do_not_mix() -> None:
    traced = Traced()
    traced.take(ROUND[1], job="one")
    traced.take(ROUND[1], job="two")
    traced.take(ROUND[4], job="one")
    (span,) = (span for span in traced.finished() if span.name == "covey.round")
    assert (span.attributes or {})["covey.job"] == "one"


@pytest.mark.parametrize(
    ("environment", "flag", "wanted"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, False, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"}, False, False),
        ({"OTEL_TRACES_EXPORTER": "none"}, True, False),
    ],
)
def test_the_flag_and_the_standard_variables_decide(environment: dict[str, str], flag: bool, wanted: bool) -> None:
    assert is_wanted(environment, flag=flag) is wanted


@pytest.fixture
def without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing.importlib.util, "find_spec", lambda _name: None)


@pytest.mark.usefixtures("without_the_extra")
def test_without_the_extra_the_flag_is_refused_and_the_variable_is_no_reason_to_fail() -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        is_wanted({}, flag=True)
    assert "covey[traces]" in caught.value.hint
    assert is_wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, flag=False) is False


def test_a_server_that_does_not_trace_imports_no_opentelemetry() -> None:
    code = (
        "import argparse, sys\n"
        "import server.serving.always_on\n"
        "from server.commands.tracing import traced\n"
        "with traced(argparse.Namespace(traces=False, fleet='f'), {}, lambda job, event: None) as observe:\n"
        "    observe('a', None)\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
