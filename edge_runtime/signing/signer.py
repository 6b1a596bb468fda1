"""Puts messages into signed envelopes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from edge_runtime.protocol.signed import SIGNATURE_BYTES, Envelope, encode_envelope, signed_bytes
from edge_runtime.signing.keys import key_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.signing.keys import PrivateKey

ALGORITHM = ec.ECDSA(hashes.SHA256())
_HALF = SIGNATURE_BYTES // 2


class Signer:
    """Signs a member's messages.

    Args:
        speaker: the member: a device's name, or signed.SERVER.
        fleet: name of the fleet; a message of one fleet means nothing in another.
        session: names this process: a device's boot id, or a random text of the server.
        key: the private key.
        take_number: returns the next sequence number, never one twice; see SequenceStore.take.
    """

    def __init__(self, speaker: str, fleet: str, session: str, key: PrivateKey, take_number: Callable[[], int]) -> None:
        self.speaker, self.fleet, self.session = speaker, fleet, session
        self._key, self._key_id = key, key_id(key.public_key())
        self._take_number = take_number

    def seal(
        self, topic: str, body: bytes, answers: str | None = None, role: Literal["message", "will"] = "message"
    ) -> bytes:
        """Return a message in its envelope. Messages must be published in the order in which they were sealed.

        Args:
            topic: the topic that it is published on.
            body: the message.
            answers: the session of the listener, as this member knows it.
            role: ``will`` for the last will.

        Raises:
            ProtocolError: with its envelope the message is larger than MAX_PAYLOAD_BYTES.
            StorageError: no sequence number can be reserved on the disk.
        """
        envelope = Envelope(
            key_id=self._key_id,
            role=role,
            session=self.session,
            answers=answers,
            sequence=self._take_number(),
            signature=bytes(SIGNATURE_BYTES),
            body=body,
        )
        der = self._key.sign(signed_bytes(self.fleet, topic, envelope), ALGORITHM)
        return encode_envelope(msgspec.structs.replace(envelope, signature=plain_signature(der)))


def plain_signature(der: bytes) -> bytes:
    """Return an ECDSA signature as r and s of 32 bytes each."""
    r, s = decode_dss_signature(der)
    return r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


def der_signature(plain: bytes) -> bytes:
    """Return an ECDSA signature of r and s in DER; see plain_signature."""
    return encode_dss_signature(int.from_bytes(plain[:_HALF], "big"), int.from_bytes(plain[_HALF:], "big"))
