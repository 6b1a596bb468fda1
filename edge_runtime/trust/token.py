"""One-time join tokens: server address, hash of the fleet's authority, and a secret, in one word that can be copied.

``covey1-`` and the URL-safe Base64 of a MessagePack array, followed by the first four bytes of the array's SHA-256: a
character that was lost or altered in copying is found before anything is sent.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import Annotated

import msgspec

from edge_runtime.errors import ConfigError, wall
from edge_runtime.network.http_address import check_http_url
from edge_runtime.values import Name

PREFIX = "covey1-"
ID_BYTES, SECRET_BYTES, HASH_BYTES = 8, 24, 32
_CHECK_BYTES = 4
_LONGEST = 1024
_HINT = "copy the whole token again, or make a new one on the server: covey fleet token NAME"


class JoinToken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a device needs to know for its first contact with its fleet.

    Attributes:
        server_url: ``https://host:port`` of the server's joining side.
        authority_sha256: SHA-256 of the authority's certificate (DER).
        id: names the token to the server.
        secret: proves to the server that the device has the token; the server keeps only its hash.
        device: the name that the device gets.
        expires_at_s: seconds since 1970 after which the server refuses it.
    """

    server_url: str
    authority_sha256: Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
    id: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    secret: Annotated[bytes, msgspec.Meta(min_length=SECRET_BYTES, max_length=SECRET_BYTES)]
    device: Name
    expires_at_s: Annotated[int, msgspec.Meta(ge=0, lt=2**40)]

    def __repr__(self) -> str:
        """Return what a log may show: never the secret."""
        return f"JoinToken({self.device!r}, {self.server_url!r}, id={self.id.hex()})"


def new_token(server_url: str, authority_sha256: bytes, device: str, expires_at_s: int) -> JoinToken:
    """Return a token with a new random id and secret.

    Raises:
        ConfigError: ``server_url`` is not an https address.
    """
    _check_https(server_url)
    return JoinToken(
        server_url,
        authority_sha256,
        secrets.token_bytes(ID_BYTES),
        secrets.token_bytes(SECRET_BYTES),
        device,
        expires_at_s,
    )


def encode_token(token: JoinToken) -> str:
    """Return a token as the word that is copied to the device."""
    data = msgspec.msgpack.encode(token)
    return PREFIX + _base64(data + _check_of(data))


def decode_token(word: str) -> JoinToken:
    """Read a token.

    Raises:
        ConfigError: it is no token, or a character of it was lost or altered; the message does not quote it.
    """
    word = word.strip()
    if not word.startswith(PREFIX) or len(word) > _LONGEST:
        raise ConfigError(f"this is no join token: a token begins with {PREFIX}", _HINT)
    body = word.removeprefix(PREFIX)
    damaged = ConfigError("the join token is damaged: a character of it is missing or altered", _HINT)
    try:
        data = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except ValueError:  # its text may quote a piece of the token
        raise damaged from None
    content, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if _base64(data) != body or not content or check != _check_of(content):
        raise damaged
    with wall(lambda _cause: ConfigError("the join token is of another version of Covey", _HINT)):
        token = msgspec.msgpack.decode(content, type=JoinToken)
    _check_https(token.server_url)
    return token


def secret_sha256(secret: bytes) -> str:
    """Return what the server keeps of a token's secret."""
    return hashlib.sha256(b"covey join token " + secret).hexdigest()


def _check_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_CHECK_BYTES]


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _check_https(url: str) -> None:
    check_http_url(url)
    if not url.startswith("https://"):
        raise ConfigError(f"{url} is not an https address", "devices join over TLS only: https://server:8443")
