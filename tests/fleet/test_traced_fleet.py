"""A real server sends its rounds to a real OTLP receiver over HTTP."""

from __future__ import annotations

import gzip
import http.server
import threading
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, free_port, write_job
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)


class _Receiver(http.server.BaseHTTPRequestHandler):
    """Keeps every request of an exporter."""

    kept: list[ExportTraceServiceRequest]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/traces":
            self.kept.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.end_headers()
        self.wfile.write(ExportTraceServiceResponse().SerializeToString())

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def received() -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    kept: list[ExportTraceServiceRequest] = []
    handler = type("Receiver", (_Receiver,), {"kept": kept})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", kept
        server.shutdown()
        thread.join()


def test_every_round_of_a_job_arrives_with_its_devices(
    tmp_path: Path,
    tiny_bundle: Bundle,
    received: tuple[str, list[ExportTraceServiceRequest]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, kept = received
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    try:
        server = fleet.serve(write_job(tmp_path, name="traced", rounds=2, min_devices=2))
        fleet.device("pi-1", 0)
        fleet.device("pi-2", 1)
        assert server.result()["rounds"] == 2
        assert server.popen.wait(60) == 0
    finally:
        fleet.stop()
    resources = [found for request in kept for found in request.resource_spans]
    named = {pair.key: pair.value.string_value for pair in resources[0].resource.attributes}
    assert named["service.name"] == "covey"
    assert named["covey.fleet"] == "default"
    assert named["deployment.environment"] == "test"
    spans = [span for found in resources for scope in found.scope_spans for span in scope.spans]
    rounds = {span.trace_id: span for span in spans if span.name == "covey.round"}
    assert len(rounds) == 2
    for trace_id, root in rounds.items():
        children = [span for span in spans if span.trace_id == trace_id and span.parent_span_id == root.span_id]
        assert sorted(span.name for span in children) == [
            "covey.aggregation",
            "covey.evaluation",
            "covey.plan",
            "covey.report",
            "covey.report",
        ]
        values = [
            {pair.key: pair.value for pair in span.attributes} for span in children if span.name == "covey.report"
        ]
        assert sorted(value["covey.device"].string_value for value in values) == ["pi-1", "pi-2"]
        assert all(value["covey.arm"].string_value.startswith("split 2 x ") for value in values)
        assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in children)
