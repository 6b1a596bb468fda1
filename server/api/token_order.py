"""Join tokens, ordered on a page, and shown there once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from server.api.orders import Field, Outcome, Prospect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.queue.operations import Operations
    from server.storage.audit_records import Asker

_MOST = 50
_NAMES = re.compile(r"[\s,]+")


class NewTokens:
    """See Order.

    Args:
        operations: does it.
    """

    title, back = "Make join tokens", "/ui/joins"
    check_button, button = "See what will happen", "Make and show the tokens"

    def __init__(self, operations: Operations) -> None:
        self._trust = operations.trust

    def fields(self) -> list[Field]:
        """See Order."""
        url = self._trust.join_url()
        return [
            Field("names", "Names of the devices", help=f"Up to {_MOST} names, with spaces between them.", most=4000,
                  is_required=True),
            Field("valid", "Good for", value="1h", help="As 30m, 1h or 7d.", is_required=True),
            Field("url", "Where devices join", value=url, help="A host that the server's certificate is for.",
                  is_required=True),
        ]  # fmt: skip

    def look(self, given: Mapping[str, str]) -> Prospect:
        """See Order."""
        names, url = _names(given["names"]), self._trust.join_url(given["url"])
        valid_s = self._trust.checked_tokens(names, given["valid"])
        effects = [
            f"A token is made for each of {len(names)} devices: {', '.join(names)}.",
            f"Whoever has a token can join as its device, once, at {url}, within {given['valid']} ({valid_s:g} s).",
            "The tokens are shown once, on the next page: the server keeps their hashes only.",
        ]
        return Prospect("Make these tokens?", effects, names[0] if len(names) == 1 else f"{len(names)} names")

    def do(self, given: Mapping[str, str], asker: Asker) -> Outcome:
        """See Order."""
        names = _names(given["names"])
        valid_s = self._trust.checked_tokens(names, given["valid"])
        return Outcome(secrets=self._trust.tokens(names, self._trust.join_url(given["url"]), valid_s, asker))


def _names(text: str) -> list[str]:
    found = [name for name in _NAMES.split(text) if name]
    if len(found) > _MOST:
        raise ConfigError(f"{len(found)} names are more than {_MOST}", "make them with: covey fleet token --count N")
    return found
