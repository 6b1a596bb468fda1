"""Makes join tokens: the secrets go to the operator, and only their hashes into the ledger."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from edge_runtime.trust.token import encode_token, new_token, secret_sha256
from edge_runtime.values import NAME_PATTERN
from server.storage.trust_records import JoinTokenRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger
    from server.trust.authority import Authority

MOST_TOKENS = 10_000
LONGEST_S = 365 * 86400.0
_SHORTEST_S = 1.0
_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAME = re.compile(NAME_PATTERN)


def make_tokens(
    ledger: Ledger, authority: Authority, server_url: str, names: Sequence[str], valid_s: float, now_s: float
) -> dict[str, str]:
    """Return a new token for each name, and enter their hashes in the ledger.

    Args:
        ledger: the ledger.
        authority: the fleet's authority.
        server_url: ``https://host:port`` where devices join.
        names: names of devices, each once.
        valid_s: how long the tokens may be used, in seconds.
        now_s: the time, in seconds since 1970.

    Raises:
        ConfigError: a name can be none or comes twice, or the time is too short or too long.
    """
    check_names(names, valid_s)
    expires_at_s = int(now_s + valid_s)
    tokens = [new_token(server_url, authority.sha256, name, expires_at_s) for name in names]
    ledger.tokens_made(
        [
            JoinTokenRecord(
                token.id.hex(), authority.fleet, token.device, secret_sha256(token.secret), token.expires_at_s
            )
            for token in tokens
        ]
    )
    return {token.device: encode_token(token) for token in tokens}


def check_names(names: Sequence[str], valid_s: float) -> None:
    """Check for whom tokens are to be made, and for how many seconds.

    Raises:
        ConfigError: a name can be none or comes twice, or the time is too short or too long.
    """
    if not 1 <= len(names) <= MOST_TOKENS:
        raise ConfigError(f"{len(names)} tokens are not between 1 and {MOST_TOKENS}", "name a device, or --count N")
    if not _SHORTEST_S <= valid_s <= LONGEST_S:
        raise ConfigError(
            f"{valid_s:g} s are not between 1 s and 365 d", "give a time such as 30m, 1h or 7d: --expires"
        )
    for name in names:
        if not _NAME.match(name):
            raise ConfigError(
                f"{name!r} cannot be the name of a device", "use up to 63 letters, digits, dots, dashes and underscores"
            )
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ConfigError(f"the name {twice[0]} comes twice", "give each device a name of its own")


def duration_s(text: str) -> float:
    """Return the seconds of a time such as ``90s``, ``30m``, ``1h`` or ``7d``.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", text)
    if found is None:
        raise ConfigError(f"{text!r} is not a time", "write a number with its unit: 90s, 30m, 1h or 7d")
    return float(found[1]) * _UNITS_S[found[2]]


def numbered_names(prefix: str, count: int, taken: set[str]) -> list[str]:
    """Return ``count`` names ``prefix-0001`` and so on, without those that are taken."""
    if not 1 <= count <= MOST_TOKENS:
        raise ConfigError(f"--count {count} is not between 1 and {MOST_TOKENS}", "make several lists")
    found: list[str] = []
    number = 0
    while len(found) < count:
        number += 1
        name = f"{prefix}-{number:04}"
        if name not in taken:
            found.append(name)
    return found
