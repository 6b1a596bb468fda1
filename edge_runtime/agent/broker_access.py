"""What a device must be allowed to do on its broker, asked before any work: ``run`` and ``doctor`` ask the same."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_runtime.network.access import check_access
from edge_runtime.network.address import parse_broker
from edge_runtime.protocol.topics import hello_topic, topic_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.network.access import Access
    from edge_runtime.protocol.topics import Kind

_LOG = logging.getLogger(__name__)
_READS: Sequence[Kind] = ("plan", "report/ack", "log/get", "release")
_WRITES: Sequence[Kind] = ("birth", "state", "report", "log", "released")
_LOG_KINDS: Sequence[Kind] = ("log/get", "log")
_PREDICT_KINDS: Sequence[Kind] = ("predict", "predicted")
_SPARED: Sequence[Kind] = (*_LOG_KINDS, *_PREDICT_KINDS, "release", "released")
"""What a device can work without."""


def device_access(config: EdgeConfig) -> Access:
    """Log in beside the device, and ask whether it may subscribe and publish where it must.

    Raises:
        ConfigError: the broker's address or the TLS files are wrong.
    """

    def topics(kinds: Sequence[Kind]) -> list[str]:
        return [topic_for(config.fleet, config.name, kind) for kind in kinds]

    asked, answered = ([kind] if config.predict.answer_server else [] for kind in _PREDICT_KINDS)
    return check_access(
        parse_broker(config.broker),
        f"covey-{config.fleet}-{config.name}-check",
        config.tls,
        reads=[hello_topic(config.fleet), *topics((*_READS, *asked))],
        writes=topics((*_WRITES, *answered)),
    )


def require_access(config: EdgeConfig) -> None:
    """Check that no access list keeps the device from its work; brokers drop what they forbid without a word.

    A broker that knows neither users nor certificates is not asked: it has nothing to tell devices apart by.

    Raises:
        NetworkError: an access list does; says which topic.
    """
    address = parse_broker(config.broker)
    if address.username is None and (config.tls is None or config.tls.cert_file is None):
        return

    def ends(kinds: Sequence[Kind]) -> tuple[str, ...]:
        return tuple(topic_for(config.fleet, config.name, kind) for kind in kinds)

    for cause in device_access(config).causes:
        if cause.kind != "acl":
            continue
        if not cause.finding.endswith(ends(_SPARED)):
            raise cause.error()
        if cause.finding.endswith(ends(_LOG_KINDS)):
            _LOG.warning("%s; without it nobody can read this device's log from afar", cause)
        elif cause.finding.endswith(ends(_PREDICT_KINDS)):
            _LOG.warning("%s; without it the server cannot ask this device for predictions", cause)
        else:
            _LOG.warning("%s; without it no new version can be rolled out to this device", cause)
