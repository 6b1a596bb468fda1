"""What device and server say to each other when a device joins or renews its certificate: JSON over HTTPS."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edge_runtime.trust.token import ID_BYTES, SECRET_BYTES
from edge_runtime.values import Name, Strict

MOST_BYTES = 16384
"""Bytes of a request or an answer."""
_Short = Annotated[str, msgspec.Meta(max_length=200)]
_Pem = Annotated[str, msgspec.Meta(max_length=8192)]


class DeviceFacts(Strict, frozen=True):
    """What a device says of itself, so that a person can tell whom to approve.

    Attributes:
        host: its host name.
        machine: its processor: ``aarch64``.
        system: its operating system.
        covey_version: the version that it runs.
    """

    host: _Short = ""
    machine: _Short = ""
    system: _Short = ""
    covey_version: _Short = ""


class JoinRequest(Strict, frozen=True):
    """``POST /join``.

    Attributes:
        token_id: the token's id, in hexadecimal digits.
        secret: the token's secret, in hexadecimal digits.
        csr: a certificate request (PEM, PKCS #10), signed with the device's new key.
        facts: what the device says of itself.
    """

    token_id: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * ID_BYTES}}}(?!\\n)$")]
    secret: Annotated[str, msgspec.Meta(pattern=f"^[0-9a-f]{{{2 * SECRET_BYTES}}}(?!\\n)$")]
    csr: _Pem
    facts: DeviceFacts = DeviceFacts()

    def __repr__(self) -> str:
        """Return what a log may show: never the secret."""
        return f"JoinRequest({self.token_id!r})"


class RenewRequest(Strict, frozen=True):
    """``POST /renew``, over a connection that shows the old certificate.

    Attributes:
        csr: a certificate request (PEM) with the same key.
    """

    csr: _Pem


class EdgeFields(msgspec.Struct, frozen=True):
    """What the server writes into a device's edge.toml; a newer server may send more, which is left out.

    Attributes:
        name: the device's name.
        fleet: the fleet's name.
        broker: the broker's address; ``mqtt://:1883`` without a host is the host that the device joined at.
        server_url: address of bundles and adapters; without a host as ``broker``; None: the server names it in its
            plans.
    """

    name: Name
    fleet: Name
    broker: _Short
    server_url: _Short | None = None


class JoinAnswer(msgspec.Struct, frozen=True):
    """The answer to ``POST /join`` and ``POST /renew``.

    Attributes:
        state: ``joined``, or ``pending`` until the operator approves; then the other fields are empty.
        retry_s: seconds until the device asks again, where it is pending.
        certificate: the device's certificate (PEM).
        authority: the fleet's authority (PEM).
        signing: certificate of the key with which the server signs (PEM).
        edge: fields of edge.toml.
        release_keys: the signed list of the fleet's release keys, base64 in JSON; empty from a server without them.
    """

    state: Literal["joined", "pending"]
    retry_s: Annotated[float, msgspec.Meta(ge=0.1, le=3600)] = 5.0
    certificate: _Pem = ""
    authority: _Pem = ""
    signing: _Pem = ""
    edge: EdgeFields | None = None
    release_keys: Annotated[bytes, msgspec.Meta(max_length=4096)] = b""


class Refusal(msgspec.Struct, frozen=True):
    """The body of an answer that is no success; the fields are those of a command's ``--format json``."""

    error: Annotated[str, msgspec.Meta(max_length=1000)]
    hint: Annotated[str, msgspec.Meta(max_length=1000)] = ""
    exit_code: int = 1
