"""Whether a server sends traces: ``--traces``, or the standard variables of OpenTelemetry."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping

    from server.events import Event

_LOG = logging.getLogger(__name__)
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_INSTALL = "pip install 'covey[traces]'"


def add_traces(parser: argparse.ArgumentParser) -> None:
    """Add ``--traces`` to a command."""
    parser.add_argument(
        "--traces",
        action="store_true",
        help="send OpenTelemetry traces of rounds, over OTLP/HTTP to $OTEL_EXPORTER_OTLP_ENDPOINT "
        "(default: http://localhost:4318); on where that variable is set",
    )


def is_wanted(environment: Mapping[str, str], *, flag: bool) -> bool:
    """Return whether traces are to be sent; OpenTelemetry's own switches turn them off.

    Raises:
        ConfigError: they are asked for with ``--traces``, and the extra is not installed.
    """
    off = (
        environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none"
    )
    if off or not (flag or any(environment.get(name) for name in _ENDPOINTS)):
        return False
    if _is_installed():
        return True
    if flag:
        raise ConfigError("--traces: OpenTelemetry is not installed", _INSTALL)
    _LOG.warning("no traces are sent, though $OTEL_EXPORTER_OTLP_ENDPOINT is set: %s", _INSTALL)
    return False


def _is_installed() -> bool:
    try:
        return all(importlib.util.find_spec(name) for name in _NEEDED)
    except ModuleNotFoundError:  # a package above it is missing
        return False


@contextlib.contextmanager
def traced(
    args: argparse.Namespace, environment: Mapping[str, str], observe: Callable[[str | None, Event], None]
) -> Iterator[Callable[[str | None, Event], None]]:
    """Yield an observer that makes spans too, where they are wanted.

    Raises:
        ConfigError: see is_wanted.
    """
    if not is_wanted(environment, flag=args.traces):
        yield observe
        return
    from server.traces.exporting import exported_spans

    with exported_spans(args.fleet, __version__) as spans:

        def both(job: str | None, event: Event) -> None:
            observe(job, event)
            spans.take(job, event)

        yield both
