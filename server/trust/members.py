"""Who is a member of a fleet now: whose certificate lets in, and whose keys may sign, by the ledger."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cryptography import x509

from edge_runtime.signing.keys import key_id
from edge_runtime.trust.keys import p256_of, read_certificate, serial_of
from server.storage import trust_queries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_runtime.signing.keys import PublicKey
    from server.storage.ledger import Ledger


class Members:
    """The devices whose certificates were issued for this fleet and are not revoked. Safe to use from several threads.

    A change in the ledger counts from the next question on: whoever is revoked is refused at once.

    Args:
        ledger: has the certificates.
        fleet: name of the fleet.
    """

    def __init__(self, ledger: Ledger, fleet: str) -> None:
        self._ledger, self._fleet = ledger, fleet
        self._lock = threading.Lock()
        self._known: object = None
        self._names: dict[bytes, str | None] = {}
        self._keys: dict[str, Mapping[bytes, PublicKey]] = {}

    @property
    def version(self) -> object:
        """Another object after each change of the fleet's certificates; compare it with ``is``."""
        return self._ledger.certificates_version

    def admits(self, certificate: bytes) -> str | None:
        """Return the name of the device that a certificate (DER) belongs to; None: it is not, or no longer, a member's.

        Whether the fleet's authority has signed it, and whether it has expired, the TLS connection has checked.
        """
        with self._lock:
            self._forget_if_changed()
            if certificate not in self._names:
                self._names[certificate] = self._name_of(certificate)
            return self._names[certificate]

    def of(self, speaker: str) -> Mapping[bytes, PublicKey]:
        """Return the keys with which a device may sign; see edge_runtime.signing.keys.Keys."""
        with self._lock:
            self._forget_if_changed()
            if speaker not in self._keys:
                found = trust_queries.certificates_of(self._ledger, self._fleet, speaker)
                valid = [read_certificate(one.certificate, speaker) for one in found if one.revoked_at is None]
                keys = [p256_of(certificate, speaker) for certificate in valid]
                self._keys[speaker] = {key_id(key): key for key in keys}
            return self._keys[speaker]

    def _forget_if_changed(self) -> None:
        version = self.version
        if version is not self._known or len(self._names) + len(self._keys) > _MOST_REMEMBERED:
            self._known, self._names, self._keys = version, {}, {}

    def _name_of(self, certificate: bytes) -> str | None:
        try:
            serial = serial_of(x509.load_der_x509_certificate(certificate))
        except ValueError:
            return None
        found = trust_queries.find_certificate(self._ledger, serial)
        return found.device if found is not None and (found.fleet, found.revoked_at) == (self._fleet, None) else None


_MOST_REMEMBERED = 100_000
"""Names and certificates that are remembered: whoever publishes can invent as many names as they like."""
