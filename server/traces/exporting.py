"""Sends spans to a collector over OTLP/HTTP, as the standard ``OTEL_…`` environment variables say."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from server.traces.round_spans import RoundSpans

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def exported_spans(fleet: str, version: str) -> Iterator[RoundSpans]:
    """Yield what takes a server's events; at the end, the spans that were not sent yet are.

    Args:
        fleet: name of the fleet, the resource's ``covey.fleet``.
        version: of Covey.
    """
    named = {"service.name": "covey", "service.version": version, "covey.fleet": fleet}
    # The environment's names come last: OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES overrule ours.
    provider = TracerProvider(
        resource=Resource.create(named).merge(OTELResourceDetector().detect()), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    spans = RoundSpans(provider.get_tracer("covey", version), time.time_ns)
    try:
        yield spans
    finally:
        spans.end()
        provider.shutdown()
