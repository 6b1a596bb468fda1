"""A device's private key (P-256), its certificate request, and hashes of keys and certificates."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_runtime.errors import ConfigError, ProtocolError, wall
from edge_runtime.files.atomic import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

PublicKey = ec.EllipticCurvePublicKey
PrivateKey = ec.EllipticCurvePrivateKey


def new_key() -> PrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), without a password."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def read_key(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: the file cannot be read, or has no P-256 key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}", "check its owner and permissions") from error
    wrong = ConfigError(f"{path} is not a P-256 key in PEM", "restore it from a backup, or join with a new token")
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):  # its text may quote the file
        raise wrong from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise wrong
    return key


def own_key(path: Path) -> PrivateKey:
    """Return the key in a file, which is made where it is missing, readable by its owner only.

    Raises:
        ConfigError: see read_key.
        StorageError: the file cannot be written.
    """
    if not path.exists():
        write_atomically(path, key_pem(new_key()), is_private=True)
    return read_key(path)


def key_sha256(key: PublicKey) -> str:
    """Return the SHA-256 of a public key (its SubjectPublicKeyInfo, DER) in hexadecimal digits."""
    data = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(data).hexdigest()


def make_request(key: PrivateKey, device: str) -> str:
    """Return a certificate request (PEM) for a device's name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, device)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def read_request(pem: str) -> tuple[str, PublicKey]:
    """Return the name and the key of a certificate request, whose signature proves that the sender has the key.

    Raises:
        ProtocolError: it is no request, has no P-256 key, or its signature is wrong.
    """
    hint = "update Covey on the device, and join again"
    with wall(lambda _cause: ProtocolError("the certificate request cannot be read", hint)):
        request = x509.load_pem_x509_csr(pem.encode())
        key = request.public_key()
        is_signed = request.is_signature_valid
        names = [str(name.value) for name in request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("the certificate request has no P-256 key", hint)
    if not is_signed:
        raise ProtocolError("the certificate request is not signed with its own key", hint)
    if len(names) != 1:
        raise ProtocolError("the certificate request does not have one name", hint)
    return names[0], key


def read_certificate(pem: str | bytes, what: str) -> x509.Certificate:
    """Read one certificate with a P-256 key.

    Args:
        pem: the certificate.
        what: what it is, for the error.

    Raises:
        ProtocolError: it is none.
    """
    with wall(lambda cause: ProtocolError(f"{what} cannot be read: {cause}", "join again with a new token")):
        certificate = x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
        p256_of(certificate, what)
    return certificate


def p256_of(certificate: x509.Certificate, what: str) -> PublicKey:
    """Return a certificate's key.

    Raises:
        ProtocolError: it is not on P-256.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError(f"{what} has no P-256 key", "make it anew with Covey: covey fleet init")
    return key


def check_signed_by(certificate: x509.Certificate, authority: x509.Certificate, what: str) -> None:
    """Check that an authority has signed a certificate.

    Raises:
        ProtocolError: it has not.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ProtocolError(
            f"{what} is not signed by the fleet's authority", "join again with a token of the right fleet"
        ) from error


def certificate_pem(certificate: x509.Certificate) -> str:
    """Return a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def certificate_sha256(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate (DER), 32 bytes: what a join token holds of the authority."""
    return certificate.fingerprint(hashes.SHA256())


def serial_of(certificate: x509.Certificate) -> str:
    """Return a certificate's serial number in hexadecimal digits, as the ledger has it."""
    return f"{certificate.serial_number:040x}"


def name_of(certificate: x509.Certificate) -> str:
    """Return a certificate's common name; empty where it has none."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""
