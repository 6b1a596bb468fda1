"""Many texts for a device's model: in requests that it answers, halved or sent again where it refuses.

A device answers at most so many texts a minute, and its answer has to fit into a message, whose size depends on the
model: an answer names every label. So what a device refuses for its size is sent again in halves, and what it refuses
for its rate after the seconds that it names.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import CoveyError
from edge_runtime.protocol.predictions import AGAIN_AFTER, MOST_REQUEST_BYTES, SEND_FEWER, TOO_LARGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MOST_WAITS = 10
"""Times that one request waits for its turn: others may ask the same device, and take what it allows."""
LONGEST_WAIT_S = 120
"""A device whose limit is full takes a minute's worth again after 60 s."""
_BATCH_BYTES = MOST_REQUEST_BYTES // 2
"""Bytes of texts in one request: the answer repeats them."""
_AGAIN_AFTER = re.compile(re.escape(AGAIN_AFTER).replace(re.escape("{}"), "([0-9]{1,6})"))


def answers(
    texts: Sequence[str],
    most_texts: int,
    ask: Callable[[list[str], int], dict[str, Any]],
    wait: Callable[[float], None],
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Yield the answer to each request, in the order of the texts.

    Args:
        texts: the texts, at least one.
        most_texts: how many are in one request.
        ask: sends a request of some texts, and returns its answer; is given the number of texts before them.
        wait: waits for so many seconds.
        say: is told what is waited for.

    Raises:
        CoveyError: what ``ask`` raises, where neither fewer texts nor waiting can help, or has helped.
    """
    requests = deque(_batches(texts, most_texts))
    first, waits = 0, 0
    while requests:
        request = requests[0]
        try:
            answer = ask(request, first)
        except CoveyError as error:
            wait_s = _wait_s(error)
            if _is_too_large(error) and len(request) > 1:
                half = len(request) // 2
                requests[0] = request[half:]
                requests.appendleft(request[:half])
            elif wait_s is not None and waits < MOST_WAITS:
                waits += 1
                say(f"{error.what}: {first} of {len(texts)} texts are answered, the next are sent after {wait_s} s")
                wait(wait_s)
            else:
                raise
            continue
        requests.popleft()
        first, waits = first + len(request), 0
        yield answer


def _batches(texts: Sequence[str], most_texts: int) -> Iterator[list[str]]:
    """Yield texts in requests that are not too large; a text that is too large itself is for the server to refuse."""
    batch: list[str] = []
    size = 0
    for text in texts:
        cost = len(text.encode())
        if batch and (len(batch) == most_texts or size + cost > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += cost
    yield batch


def _is_too_large(error: CoveyError) -> bool:
    return error.what.endswith(TOO_LARGE) or error.hint == SEND_FEWER


def _wait_s(error: CoveyError) -> int | None:
    """Return the seconds after which a device takes the same request; None: it has named none."""
    found = _AGAIN_AFTER.fullmatch(error.hint)
    wait_s = LONGEST_WAIT_S + 1 if found is None else int(found[1])
    return wait_s if wait_s <= LONGEST_WAIT_S else None
