"""Requests for predictions that the server sends to a device, and the device's answers."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge_runtime.protocol.message_base import ProtocolMessage
from edge_runtime.values import Name

MOST_TEXTS = 64
"""Texts in one request."""
MOST_REQUEST_BYTES = 100_000
"""Bytes of the body of a request."""
MOST_ANSWER_BYTES = 128_000
"""Bytes of the body of an answer, which repeats the texts."""
LONGEST_PATIENCE_S = 600.0

TOO_LARGE = "fit into a message"
"""Ends the error of a request or an answer that is too large: fewer texts at once may be answered."""
SEND_FEWER = "send fewer at once"
"""The hint of an error that fewer texts at once may not have."""
AGAIN_AFTER = "send it again after {} s"
"""The hint of an error that the same request does not have after so many whole seconds."""

RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Predict(ProtocolMessage, frozen=True, tag="predict", kw_only=True):
    """Answer texts with the model in use; server → device, only to a device whose birth says that it answers.

    Attributes:
        request: names the request; new for each, and the same where it is sent again to who announces itself.
        patience_s: seconds from receipt after which nobody waits for the answer.
        body: what ``POST /predict`` of the device's own endpoint takes, as JSON.
    """

    request: RequestId
    patience_s: Annotated[float, msgspec.Meta(gt=0, le=LONGEST_PATIENCE_S)]
    body: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MOST_REQUEST_BYTES)]


class Predicted(ProtocolMessage, frozen=True, tag="predicted", kw_only=True):
    """The answer to a request for predictions; device → server.

    Attributes:
        request: of the request.
        device: the device's name.
        code: the exit code of the error; 0: there is none.
        what: the error; empty: there is none.
        hint: what to do about it.
        body: what ``POST /predict`` answers, as JSON; empty: there is an error.
    """

    request: RequestId
    device: Name
    code: Annotated[int, msgspec.Meta(ge=0, le=255)]
    what: Annotated[str, msgspec.Meta(max_length=2000)]
    hint: Annotated[str, msgspec.Meta(max_length=1000)]
    body: Annotated[bytes, msgspec.Meta(max_length=MOST_ANSWER_BYTES)]
