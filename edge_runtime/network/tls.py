"""The one TLS context of a member: made from its files for the broker and for blobs, in every command alike.

Python 3.13 made ``ssl.create_default_context`` strict about extensions (RFC 5280) that many private authorities lack.
This context is the same on every Python: chain, signature, dates and host name are verified, strictness is left out.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from edge_runtime.errors import ConfigError
from edge_runtime.network.address import TlsFiles

_LOG = logging.getLogger(__name__)


def tls_context(files: TlsFiles | None, *, and_system: bool = False) -> ssl.SSLContext:
    """Return a context that verifies the other side, and shows this member's certificate if there is one.

    Args:
        files: the authority, and this member's certificate and key; without an authority the system's are trusted.
        and_system: trust the system's authorities beside ``ca_file`` too: for HTTPS, where a public authority may
            have signed the server although the broker has a private one.

    Raises:
        ConfigError: a file is missing, is not PEM, or the key does not belong to the certificate; names the file.
    """
    files = files or TlsFiles()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if files.ca_file is None or and_system:
        context.load_default_certs()
    if files.ca_file is not None:
        _load_authority(context, files.ca_file)
    if files.cert_file is not None:
        load_own(context, files.cert_file, files.key_file)
    elif files.key_file is not None:
        raise ConfigError("[tls] key_file is set without cert_file", "set cert_file too, or remove key_file")
    return context


def _load_authority(context: ssl.SSLContext, ca_file: str) -> None:
    _check_readable("ca_file", ca_file)
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{ca_file} holds no certificate of an authority ({error.reason or error})",
            "give ca_file ([tls], or covey serve --tls-ca) the authority's certificate as PEM: BEGIN CERTIFICATE",
        ) from error


def load_own(context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
    """Have a context show a member's certificate on the connections that are made from now on.

    Raises:
        ConfigError: a file is missing, is not PEM, or the key does not belong to the certificate; names the file.
    """
    _check_readable("cert_file", cert_file)
    if key_file is not None:
        _check_readable("key_file", key_file)
    try:
        context.load_cert_chain(cert_file, key_file, password=_no_password)
    except _EncryptedKeyError:
        raise ConfigError(
            f"the key {key_file or cert_file} is encrypted with a password",
            "write it without one: openssl pkey -in KEY -out NEW_KEY, readable by this user only",
        ) from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(
                f"the key {key_file or cert_file} does not belong to the certificate {cert_file}",
                "give cert_file and key_file of one pair",
            ) from error
        raise ConfigError(
            f"{cert_file} and {key_file or 'no key_file'} are not a certificate with its key ({error.reason or error})",
            "give cert_file and key_file ([tls], or covey serve --tls-cert and --tls-key) as PEM files",
        ) from error


class OwnCertificate:
    """A member's certificate in a context that lives longer than the certificate: a renewed one is taken from its file.

    Only one of the same key is taken: whoever has joined anew has another key, and signs with it after a restart.

    Args:
        context: it has the certificate.
        cert_file: its file.
        key_file: its key's; None: the key is in the same file.
    """

    def __init__(self, context: ssl.SSLContext, cert_file: str, key_file: str | None) -> None:
        self._context, self._cert_file, self._key_file = context, cert_file, key_file
        self._cert, self._key = _stamp(cert_file), _stamp(key_file)

    def take_renewed(self) -> None:
        """Take the certificate from its file if it is another one; one that cannot be read is taken another time."""
        cert = _stamp(self._cert_file)
        if self._key_file is None or cert in (None, self._cert) or _stamp(self._key_file) != self._key:
            return
        try:
            self._context.load_cert_chain(self._cert_file, self._key_file, password=_no_password)
        except (OSError, _EncryptedKeyError) as error:
            _LOG.warning("the renewed certificate %s cannot be used: %s", self._cert_file, error)
        self._cert = cert


def _stamp(path: str | None) -> tuple[int, int, int] | None:
    """Return what tells a file from the one that was there before; None: it cannot be read."""
    try:
        found = Path(path or "").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class _EncryptedKeyError(Exception):
    """The key has a password, and nobody is there to type it."""


def _no_password() -> str:
    raise _EncryptedKeyError


def _check_readable(setting: str, path: str) -> None:
    """Say a missing file as a missing file: ``ssl`` names neither the file nor the setting.

    Raises:
        ConfigError: the file does not exist, or cannot be read.
    """
    try:
        with Path(path).open("rb"):
            return
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no file {path} ([tls] {setting})", f"correct {setting}, or copy the file there"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} ([tls] {setting}) cannot be read: {error.strerror or error}",
            "check its owner and permissions",
        ) from error
