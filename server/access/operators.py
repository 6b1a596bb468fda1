"""The operators of a server and their tokens: one without a name, or a file with a line ``NAME TOKEN`` for each."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from typing import TYPE_CHECKING, Protocol

from edge_runtime.errors import ConfigError, storage_error

if TYPE_CHECKING:
    from pathlib import Path

LEAST_TOKEN = 16
"""Characters of the shortest token."""
API_TOKEN = "api-token"  # noqa: S105 a name
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,62}", re.ASCII)
_NOT_NAMES = ("local", API_TOKEN)


class Operators(Protocol):
    """Knows the operators by their tokens."""

    def name_of(self, token: str) -> str | None:
        """Return whose token it is; None: nobody's."""

    def is_valid(self, name: str, digest: bytes) -> bool:
        """Whether an operator still has the token of a hash (see digest_of)."""


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token, by which it is compared and remembered."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


class OneToken:
    """Operators who share one token, and have no names."""

    def __init__(self, token: str) -> None:
        self._digest = digest_of(token)

    def name_of(self, token: str) -> str | None:
        """See Operators."""
        return API_TOKEN if hmac.compare_digest(digest_of(token), self._digest) else None

    def is_valid(self, name: str, digest: bytes) -> bool:
        """See Operators."""
        return name == API_TOKEN and hmac.compare_digest(digest, self._digest)


class OperatorFile:
    """Operators with names. The file is read again when it has changed: who is taken out of it is out at once.

    Args:
        path: the file, which only its owner can read; empty lines and those that begin with ``#`` do not count.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, int, int] | None = None
        self._digests: dict[str, bytes] = {}
        self._read()

    def name_of(self, token: str) -> str | None:
        """See Operators.

        Raises:
            ConfigError: the file has changed, and cannot be used.
        """
        self._read()
        given, found = digest_of(token), None
        for name, digest in self._digests.items():  # all of them, so that the time says nothing
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def is_valid(self, name: str, digest: bytes) -> bool:
        """See Operators; raises as name_of does."""
        self._read()
        return hmac.compare_digest(self._digests.get(name, b""), digest)

    def _read(self) -> None:
        try:
            found = self._path.stat()
            state = (found.st_mtime_ns, found.st_size, found.st_ino)
            if state == self._state:
                return
            if found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"{self._path} can be read by other users", f"chmod 600 {self._path}")
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise storage_error(error, self._path) from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{self._path} is no text", "write a line NAME TOKEN for each operator") from error
        self._digests = {name: digest_of(token) for name, token in _parsed(text, str(self._path)).items()}
        self._state = state


def _parsed(text: str, place: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"line {number} of {place}"
        if len(words) != 2:
            raise ConfigError(f"{where} has {len(words)} words", "a line is NAME TOKEN")
        name, token = words
        if _NAME.fullmatch(name) is None or name in _NOT_NAMES:
            raise ConfigError(f"{where}: {name!r} can be no operator's name", "use letters, digits, dots, dashes and @")
        if len(token) < LEAST_TOKEN:
            raise ConfigError(
                f"{where}: the token of {name} is shorter than {LEAST_TOKEN} characters",
                "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        if name in found or token in found.values():
            raise ConfigError(f"{where}: {name} or its token comes twice", "give each operator one token of its own")
        found[name] = token
    if not found:
        raise ConfigError(f"{place} names no operator", "write a line NAME TOKEN for each")
    return found
