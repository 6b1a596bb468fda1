"""What the ledger keeps of join tokens and certificates, as typed records."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class JoinTokenRecord:
    """A join token; the ledger has a hash of its secret only.

    Attributes:
        id: in hexadecimal digits.
        fleet: the fleet that it is for.
        device: the name that the device gets.
        secret_sha256: see edge_runtime.trust.token.secret_sha256.
        expires_at_s: seconds since 1970 after which it is refused, if it was not used before.
        state: ``open``, ``pending`` (waits for approval), ``approved``, ``rejected`` or ``used``.
        key_sha256: hash of the public key that it is bound to; None: it was never shown.
        facts: what the device says of itself.
        address: the address from which it was shown.
        asked_at: when it was shown first, where approval is asked for.
        serial: of the certificate that it was used for.
    """

    id: str
    fleet: str
    device: str
    secret_sha256: str = field(repr=False)
    expires_at_s: int
    state: str = "open"
    key_sha256: str | None = None
    facts: dict[str, str] | None = None
    address: str | None = None
    asked_at: str | None = None
    serial: str | None = None


@dataclass(frozen=True)
class CertificateRecord:
    """A certificate that was issued to a device.

    Attributes:
        serial: its number in 40 hexadecimal digits.
        fleet: the fleet.
        device: the device's name.
        key_sha256: hash of its public key.
        certificate: the certificate (PEM).
        expires_at_s: the end of its time, in seconds since 1970.
        revoked_at: when it was revoked; None: it was not.
        reason: why it was revoked.
    """

    serial: str
    fleet: str
    device: str
    key_sha256: str
    certificate: str
    expires_at_s: int
    revoked_at: str | None = None
    reason: str | None = None
