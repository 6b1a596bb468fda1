"""The TLS context of the joining side: the server's certificate, and devices that may show theirs."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from edge_runtime.errors import StorageError
from server.trust.folder import AUTHORITY_CERT, SERVER_CERT, SERVER_KEY

if TYPE_CHECKING:
    from server.trust.folder import Trust


def server_context(trust: Trust, *, needs_certificate: bool) -> ssl.SSLContext:
    """Return a context for a listener, by the strict rules of RFC 5280 and TLS 1.3 only.

    Args:
        trust: the fleet's keys.
        needs_certificate: whether a client without a certificate of the fleet is turned away. A device that joins has
            none yet; a certificate that is shown is always verified.

    Raises:
        StorageError: the server's certificate or key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_mode = ssl.CERT_REQUIRED if needs_certificate else ssl.CERT_OPTIONAL
    folder = trust.folder
    try:
        context.load_cert_chain(folder / SERVER_CERT, folder / SERVER_KEY, password=lambda: "")
        context.load_verify_locations(folder / AUTHORITY_CERT)
    except (ssl.SSLError, OSError) as error:
        raise StorageError(
            f"the server's certificate in {folder} cannot be used: {error}", "restore the folder from your backup"
        ) from error
    return context
