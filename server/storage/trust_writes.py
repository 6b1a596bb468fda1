"""The ledger's writes about join tokens and certificates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, update

from server.storage.tables import CERTIFICATES, DEVICE_TAGS, DEVICES, HELD_TAGS, JOIN_TOKENS, PROFILES
from server.storage.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.trust_records import CertificateRecord, JoinTokenRecord


class TrustWrites(Writes):
    """See the file's first line.

    Attributes:
        certificates_version: another object after each change of the certificates; compare it with ``is``.
    """

    certificates_version: object = object()

    def tokens_made(self, tokens: Sequence[JoinTokenRecord]) -> None:
        """Enter new tokens, all or none."""
        rows = [
            {
                "id": token.id,
                "fleet": token.fleet,
                "device": token.device,
                "secret_sha256": token.secret_sha256,
                "created_at": self.database.now_text(),
                "expires_at_s": token.expires_at_s,
                "state": token.state,
            }
            for token in tokens
        ]
        with self.database.transaction():
            self.database.write_many(insert(JOIN_TOKENS), rows)

    def join_asked(self, token_id: str, key_sha256: str, facts: str, address: str) -> bool:
        """Enter that a device with this key waits for approval; return whether the token was open."""
        values = {"state": "pending", "key_sha256": key_sha256, "facts": facts, "address": address}
        of_token = (JOIN_TOKENS.c.id == token_id, JOIN_TOKENS.c.state == "open")
        return (
            self.database.write(
                update(JOIN_TOKENS).where(*of_token).values(**values, asked_at=self.database.now_text())
            )
            > 0
        )

    def join_decided(self, fleet: str, device: str, state: str) -> int:
        """Enter the operator's decision, ``approved`` or ``rejected``, about all who wait under a name.

        Returns:
            How many waited.
        """
        here = (JOIN_TOKENS.c.fleet == fleet, JOIN_TOKENS.c.device == device, JOIN_TOKENS.c.state == "pending")
        return self.database.write(update(JOIN_TOKENS).where(*here).values(state=state))

    def joined(self, token_id: str, facts: str, address: str, certificate: CertificateRecord) -> bool:
        """Enter a certificate that a token was used for, and revoke the older ones of its name.

        Returns:
            Whether the token was still to be used; if not, nothing was entered.
        """
        used = {"state": "used", "key_sha256": certificate.key_sha256, "serial": certificate.serial}
        of_token = (JOIN_TOKENS.c.id == token_id, JOIN_TOKENS.c.state.in_(["open", "approved"]))
        with self.database.transaction():
            change = update(JOIN_TOKENS).where(*of_token).values(**used, facts=facts, address=address)
            if not self.database.write(change):
                return False
            self.revoke_device(certificate.fleet, certificate.device, "the device has joined again")
            self.certificate_issued(certificate)
        return True

    def certificate_issued(self, certificate: CertificateRecord) -> None:
        """Enter a certificate."""
        row = {
            "serial": certificate.serial,
            "fleet": certificate.fleet,
            "device": certificate.device,
            "key_sha256": certificate.key_sha256,
            "certificate": certificate.certificate,
            "issued_at": self.database.now_text(),
            "expires_at_s": certificate.expires_at_s,
        }
        self.database.write(insert(CERTIFICATES), row)
        self._certificates_changed()

    def revoke_device(self, fleet: str, device: str, reason: str) -> int:
        """Revoke all certificates of a device that are not revoked; return how many."""
        here = (CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.device == device, CERTIFICATES.c.revoked_at.is_(None))
        change = update(CERTIFICATES).where(*here).values(revoked_at=self.database.now_text(), reason=reason)
        revoked = self.database.write(change)
        self._certificates_changed()
        return revoked

    def _certificates_changed(self) -> None:
        self.certificates_version = object()

    def cancel_tokens(self, fleet: str, device: str) -> int:
        """Reject all tokens of a name that are not used yet; return how many."""
        unused = JOIN_TOKENS.c.state.in_(["open", "pending", "approved"])
        here = (JOIN_TOKENS.c.fleet == fleet, JOIN_TOKENS.c.device == device, unused)
        return self.database.write(update(JOIN_TOKENS).where(*here).values(state="rejected"))

    def revoke_serial(self, serial: str, reason: str) -> None:
        """Revoke one certificate, unless it is revoked."""
        here = (CERTIFICATES.c.serial == serial, CERTIFICATES.c.revoked_at.is_(None))
        self.database.write(
            update(CERTIFICATES).where(*here).values(revoked_at=self.database.now_text(), reason=reason)
        )
        self._certificates_changed()

    def rename_certificates(self, fleet: str, device: str, new_name: str) -> bool:
        """Enter a device's new name, which its next certificate has; return whether it has a certificate."""
        here = (CERTIFICATES.c.fleet == fleet, CERTIFICATES.c.device == device)
        with self.database.transaction():
            valid = update(CERTIFICATES).where(*here, CERTIFICATES.c.revoked_at.is_(None))
            renamed = self.database.write(valid.values(device=new_name)) > 0
        self._certificates_changed()
        return renamed

    def renewed(self, certificate: CertificateRecord, shown_name: str) -> None:
        """Enter the certificate that a device got for its old one; where it has a new name, its rows get it too.

        What it did in jobs keeps the old name.

        Args:
            certificate: the new one.
            shown_name: the name that the old one has.
        """
        with self.database.transaction():
            self.certificate_issued(certificate)
            if shown_name == certificate.device:
                return
            for table, column in (
                (DEVICES, DEVICES.c.name),
                (DEVICE_TAGS, DEVICE_TAGS.c.device),
                (HELD_TAGS, HELD_TAGS.c.device),
                (PROFILES, PROFILES.c.device),
            ):
                taken = (table.c.fleet == certificate.fleet, column == certificate.device)
                here = (table.c.fleet == certificate.fleet, column == shown_name)
                self.database.write(delete(table).where(*taken))
                self.database.write(update(table).where(*here).values({column.name: certificate.device}))
