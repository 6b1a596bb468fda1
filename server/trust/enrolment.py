"""Decides who gets a certificate: for a join token that is good, or for an old certificate that is still valid."""

from __future__ import annotations

import datetime as dt
import hmac
import logging
import threading
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import EnrolmentError, wall
from edge_runtime.trust.keys import (
    certificate_pem,
    check_signed_by,
    key_sha256,
    name_of,
    p256_of,
    read_certificate,
    read_request,
    serial_of,
)
from edge_runtime.trust.messages import JoinAnswer
from edge_runtime.trust.token import secret_sha256
from edge_runtime.trust.validity import date_words
from server.storage import trust_queries
from server.storage.trust_records import CertificateRecord
from server.trust.release_keys import open_release_keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

    from edge_runtime.trust.keys import PublicKey
    from edge_runtime.trust.messages import EdgeFields, JoinRequest
    from server.storage.ledger import Ledger
    from server.storage.trust_records import JoinTokenRecord
    from server.trust.folder import Trust

_LOG = logging.getLogger(__name__)
_REMEDY = "make a new token on the server: covey fleet token {}"
_NO_SECRET = secret_sha256(b"")
"""What is compared where there is no such token, so that both take the same time."""
_PENDING_RETRY_S = 5.0


class Enrolment:
    """Issues certificates to devices. Safe to use from several threads.

    Args:
        ledger: tokens and certificates.
        trust: the fleet's keys.
        needs_approval: whether the operator approves each device: ``covey device approve``.
        edge_fields: returns what a device of a name writes into its edge.toml.
        clock_s: the time, in seconds since 1970.
    """

    def __init__(
        self,
        ledger: Ledger,
        trust: Trust,
        *,
        needs_approval: bool,
        edge_fields: Callable[[str], EdgeFields],
        clock_s: Callable[[], float],
    ) -> None:
        self._ledger, self.trust = ledger, trust
        self._needs_approval, self._edge_fields, self._clock_s = needs_approval, edge_fields, clock_s
        self._one_at_a_time = threading.Lock()

    def join(self, request: JoinRequest, address: str) -> JoinAnswer:
        """Return a certificate for a token, or that the device has to wait for approval.

        A token is bound to the first key that it is shown with. Whoever shows it again with this key, because an
        answer was lost, gets the same certificate; with another key it is used up.

        Args:
            request: what the device sent.
            address: where it sent it from, for the log and the operator.

        Raises:
            EnrolmentError: the token is unknown, expired, used, rejected, or of another name.
            ProtocolError: the certificate request is none.
        """
        with self._one_at_a_time:
            token = self._token_of(request)
            name, key = read_request(request.csr)
            if name != token.device:
                raise EnrolmentError(
                    f"the token is for the name {token.device}, and the certificate request for {name}",
                    _REMEDY.format(name),
                )
            key_hash = key_sha256(key)
            self._check_usable(token, key_hash)
            if token.state == "used":
                return self._issued(token)
            if token.state == "pending" or (self._needs_approval and token.state == "open"):
                return self._pending(token, key_hash, request, address)
            return self._issue(token, key, request, address)

    def renew(self, certificate: x509.Certificate, csr: str) -> JoinAnswer:
        """Return a new certificate for a device that has shown its old one, with the same key.

        Raises:
            EnrolmentError: the old one is revoked, expired or unknown, or the key is another one.
            ProtocolError: the certificate request is none, or the old certificate is another authority's.
        """
        with self._one_at_a_time:
            known = self._known(certificate)
            _, key = read_request(csr)
            if key_sha256(key) != known.key_sha256:
                raise EnrolmentError(
                    f"the certificate request of {known.device} has another key than its certificate",
                    "covey-edge join with a new token, which makes a new key",
                )
            made, record = self._certificate(known.device, key)
            self._ledger.renewed(record, name_of(certificate))
            _LOG.info("%s has renewed its certificate", known.device)
            return self._answer(certificate_pem(made), known.device)

    def whois(self, certificate: x509.Certificate) -> JoinAnswer:
        """Return the fields that a device has now, without a certificate; its name may have changed.

        Once it has shown a certificate of its new name, those of the old name are revoked.

        Raises:
            EnrolmentError: the certificate is revoked, expired or unknown.
            ProtocolError: it is another authority's.
        """
        with self._one_at_a_time:
            known = self._known(certificate)
            if name_of(certificate) == known.device:
                for other in trust_queries.certificates_of(self._ledger, known.fleet, known.device):
                    if name_of(read_certificate(other.certificate, "a certificate of the ledger")) != known.device:
                        self._ledger.revoke_serial(other.serial, f"the device is named {known.device} now")
            return JoinAnswer("joined", edge=self._edge_fields(known.device), release_keys=self._release_keys())

    def _known(self, certificate: x509.Certificate) -> CertificateRecord:
        """Return what the ledger knows of a certificate that a device has shown, and that is alive."""
        check_signed_by(certificate, self.trust.authority.certificate, "the certificate that was shown")
        known = trust_queries.find_certificate(self._ledger, serial_of(certificate))
        if known is None or known.fleet != self.trust.fleet:
            raise EnrolmentError(
                "the certificate that was shown was not issued to a device of this fleet",
                "covey-edge join with a new token",
            )
        self._check_alive(known)
        return known

    def _check_alive(self, known: CertificateRecord) -> None:
        """Check that a certificate is neither revoked nor expired by the server's clock."""
        remedy = _REMEDY.format(known.device)
        if known.revoked_at is not None:
            raise EnrolmentError(
                f"the certificate of {known.device} was revoked at {known.revoked_at} ({known.reason})",
                f"if the device is to be in the fleet, {remedy}",
            )
        if known.expires_at_s <= self._clock_s():
            raise EnrolmentError(
                f"the certificate of {known.device} expired at {date_words(known.expires_at_s)}", remedy
            )

    def _token_of(self, request: JoinRequest) -> JoinTokenRecord:
        """Return the token of a request; a wrong secret and an unknown id are the same to whoever guesses."""
        token = trust_queries.find_token(self._ledger, request.token_id)
        kept = _NO_SECRET if token is None else token.secret_sha256
        is_right = hmac.compare_digest(kept, secret_sha256(bytes.fromhex(request.secret)))
        if token is None or not is_right or token.fleet != self.trust.fleet:
            raise EnrolmentError(
                f"fleet {self.trust.fleet} has no such join token", _REMEDY.format("NAME"), is_guess=True
            )
        return token

    def _check_usable(self, token: JoinTokenRecord, key_hash: str) -> None:
        remedy = _REMEDY.format(token.device)
        if token.state == "rejected":
            raise EnrolmentError(f"the operator has rejected the join token of {token.device}", remedy)
        if token.key_sha256 is not None and token.key_sha256 != key_hash:
            raise EnrolmentError(
                f"the join token of {token.device} has been used already, with another key",
                f"each device needs a token of its own; {remedy}; if you do not know who used it: "
                f"covey device revoke {token.device}",
            )
        if token.state in ("open", "pending") and token.expires_at_s <= self._clock_s():
            raise EnrolmentError(
                f"the join token of {token.device} expired at {date_words(token.expires_at_s)} by the server's clock",
                remedy,
            )
        if trust_queries.is_revoked_key(self._ledger, self.trust.fleet, key_hash):
            raise EnrolmentError(
                f"the key of {token.device} belongs to a revoked certificate",
                f"{remedy}; the device makes a new key for it",
            )

    def _pending(self, token: JoinTokenRecord, key_hash: str, request: JoinRequest, address: str) -> JoinAnswer:
        if token.state == "open" and self._ledger.join_asked(token.id, key_hash, _json(request), address):
            _LOG.warning("%s (%s) wants to join: covey device approve %s", token.device, address, token.device)
        return JoinAnswer("pending", _PENDING_RETRY_S)

    def _issue(self, token: JoinTokenRecord, key: PublicKey, request: JoinRequest, address: str) -> JoinAnswer:
        made, record = self._certificate(token.device, key)
        if not self._ledger.joined(token.id, _json(request), address, record):
            raise EnrolmentError(
                f"the join token of {token.device} has been used already", _REMEDY.format(token.device)
            )
        _LOG.info("%s has joined the fleet from %s", token.device, address)
        return self._answer(certificate_pem(made), token.device)

    def _issued(self, token: JoinTokenRecord) -> JoinAnswer:
        """Return the certificate that a token was used for again."""
        known = None if token.serial is None else trust_queries.find_certificate(self._ledger, token.serial)
        if known is None:
            raise EnrolmentError(
                f"the join token of {token.device} has been used already", _REMEDY.format(token.device)
            )
        self._check_alive(known)
        return self._answer(known.certificate, known.device)

    def _certificate(self, device: str, key: PublicKey) -> tuple[x509.Certificate, CertificateRecord]:
        now = dt.datetime.fromtimestamp(self._clock_s(), dt.timezone.utc)
        made = self.trust.authority.device(device, key, now)
        end_s = int(made.not_valid_after_utc.timestamp())
        hashed = key_sha256(p256_of(made, "the new certificate"))
        return made, CertificateRecord(serial_of(made), self.trust.fleet, device, hashed, certificate_pem(made), end_s)

    def _answer(self, certificate: str, device: str) -> JoinAnswer:
        return JoinAnswer(
            "joined",
            certificate=certificate,
            authority=certificate_pem(self.trust.authority.certificate),
            signing=certificate_pem(self.trust.signing),
            edge=self._edge_fields(device),
            release_keys=self._release_keys(),
        )

    def _release_keys(self) -> bytes:
        """Return the signed list as it is now: covey fleet rotate-release-key may have changed it."""
        return open_release_keys(self.trust.folder, self.trust.fleet, self._clock_s()).key_list


def _json(request: JoinRequest) -> str:
    with wall(lambda cause: EnrolmentError(f"what the device says of itself cannot be kept: {cause}")):
        return msgspec.json.encode(request.facts).decode()
