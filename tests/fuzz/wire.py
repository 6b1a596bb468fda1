"""Valid inputs for the targets: every message that the protocol's own tests pin, a replay log, join tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from round_logs import RULES, make_log

from edge_runtime.trust.token import new_token

if TYPE_CHECKING:
    from edge_runtime.protocol.messages import AnyMessage

_PINNED = Path(__file__).parents[1] / "edge" / "test_protocol.py"


def _pinned_messages() -> list[AnyMessage]:
    """Return the messages with golden encodings: one of each kind, new kinds included."""
    spec = importlib.util.spec_from_file_location("pinned_messages", _PINNED)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [message for message, _ in module.MESSAGES]


MESSAGES = _pinned_messages()
LOG = make_log(RULES[0])
TOKENS = [new_token(url, b"h" * 32, "pi-1", 2**31) for url in ("https://server:8443", "https://[2001:db8::1]:1/path")]
