"""Sessions of browsers: random, in memory only, ended by sign-out, by time, with the operator, and with the server."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.access.operators import Operators

LONGEST_S = 12 * 3600.0
"""Seconds after which an operator signs in again."""
IDLE_S = 2 * 3600.0
"""Seconds without a request after which a session ends."""
MOST = 1000
"""Sessions at once; the one that was begun first ends for another."""


@dataclass
class _Session:
    operator: str
    digest: bytes
    began_s: float
    used_s: float


class Sessions:
    """Sessions by their secret; used in one thread.

    Args:
        operators: a session ends when its operator's token is valid no more.
        clock_s: a clock that never goes back.
    """

    def __init__(self, operators: Operators, clock_s: Callable[[], float]) -> None:
        self._operators, self._clock_s = operators, clock_s
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, operator: str, digest: bytes) -> str:
        """Begin a session of an operator whose token has a hash; return its secret."""
        now_s = self._clock_s()
        secret = secrets.token_urlsafe(32)
        self._sessions[secret] = _Session(operator, digest, now_s, now_s)
        if len(self._sessions) > MOST:
            self._sessions.popitem(last=False)
        return secret

    def operator_of(self, secret: str) -> str | None:
        """Return whose session it is, and count it as used; None: it is none, or has ended."""
        found = self._sessions.get(secret)
        if found is None:
            return None
        now_s = self._clock_s()
        is_old = now_s - found.began_s > LONGEST_S or now_s - found.used_s > IDLE_S
        if is_old or not self._operators.is_valid(found.operator, found.digest):
            del self._sessions[secret]
            return None
        found.used_s = now_s
        return found.operator

    def end(self, secret: str) -> None:
        """End a session."""
        self._sessions.pop(secret, None)


class FormTokens:
    """What a form carries to show that the server has made it for the same asker. Another process has others."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def token_of(self, asker: str) -> str:
        """Return the token of an asker's forms; ``asker``: its session's secret, or whatever else is its own."""
        return hmac.new(self._key, asker.encode(errors="surrogatepass"), hashlib.sha256).hexdigest()

    def is_valid(self, asker: str, token: str) -> bool:
        """Whether a form's token is the asker's."""
        return hmac.compare_digest(self.token_of(asker).encode(), token.encode(errors="surrogatepass"))
