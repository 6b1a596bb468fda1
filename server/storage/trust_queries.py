"""What can be asked of the ledger about join tokens and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from server.storage.asking import records, tuples
from server.storage.tables import CERTIFICATES, DEVICES, JOIN_TOKENS
from server.storage.trust_records import CertificateRecord, JoinTokenRecord

if TYPE_CHECKING:
    from server.storage.ledger import Ledger

_FACTS = {"facts": dict[str, str]}


def find_token(ledger: Ledger, token_id: str) -> JoinTokenRecord | None:
    """Return a token by its id; None: there is none."""
    found = records(ledger, JoinTokenRecord, select(JOIN_TOKENS).where(JOIN_TOKENS.c.id == token_id), json=_FACTS)
    return found[0] if found else None


def pending_joins(ledger: Ledger, fleet: str) -> list[JoinTokenRecord]:
    """Return the tokens whose devices wait for approval, by name."""
    here = (JOIN_TOKENS.c.fleet == fleet, JOIN_TOKENS.c.state == "pending")
    query = select(JOIN_TOKENS).where(*here).order_by(JOIN_TOKENS.c.device, JOIN_TOKENS.c.id)
    return records(ledger, JoinTokenRecord, query, json=_FACTS)


def find_certificate(ledger: Ledger, serial: str) -> CertificateRecord | None:
    """Return a certificate by its serial number in hexadecimal digits; None: there is none."""
    found = records(ledger, CertificateRecord, select(CERTIFICATES).where(CERTIFICATES.c.serial == serial))
    return found[0] if found else None


def certificates_of(ledger: Ledger, fleet: str, device: str) -> list[CertificateRecord]:
    """Return all certificates of a device, the oldest first."""
    here = (CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.device == device)
    query = select(CERTIFICATES).where(*here).order_by(CERTIFICATES.c.issued_at, CERTIFICATES.c.expires_at_s)
    return records(ledger, CertificateRecord, query)


def revoked_serials(ledger: Ledger, fleet: str, now_s: float) -> frozenset[str]:
    """Return the serial numbers of revoked certificates that have not expired by themselves."""
    here = (CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.revoked_at.is_not(None), CERTIFICATES.c.expires_at_s > now_s)
    return frozenset(serial for (serial,) in tuples(ledger, tuple[str], select(CERTIFICATES.c.serial).where(*here)))


def revoked_names(ledger: Ledger, fleet: str) -> frozenset[str]:
    """Return the names of devices whose certificates are all revoked."""
    valid = select(CERTIFICATES.c.device).where(CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.revoked_at.is_(None))
    query = select(CERTIFICATES.c.device).where(CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.device.not_in(valid))
    return frozenset(name for (name,) in tuples(ledger, tuple[str], query))


def is_revoked_key(ledger: Ledger, fleet: str, key_sha256: str) -> bool:
    """Whether a certificate of this key was ever revoked in a fleet."""
    here = (
        CERTIFICATES.c.fleet == fleet,
        CERTIFICATES.c.key_sha256 == key_sha256,
        CERTIFICATES.c.revoked_at.is_not(None),
    )
    return bool(tuples(ledger, tuple[str], select(CERTIFICATES.c.serial).where(*here).limit(1)))


def is_known_name(ledger: Ledger, fleet: str, device: str) -> bool:
    """Whether a device of this name was ever seen in a fleet, or has a certificate."""
    seen = select(DEVICES.c.name).where(DEVICES.c.fleet == fleet, DEVICES.c.name == device).limit(1)
    return bool(tuples(ledger, tuple[str], seen)) or bool(certificates_of(ledger, fleet, device))
