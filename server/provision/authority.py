"""Which fleet a board is of: the hash of the authority that it trusts."""

from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING

from server.provision.facts import authority_pem

if TYPE_CHECKING:
    from server.provision.facts import Facts


def authority_of(facts: Facts) -> bytes | None:
    """Return the SHA-256 of the authority's certificate (DER) on a board; None: there is none that can be read."""
    pem = authority_pem(facts)
    if pem is None:
        return None
    try:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem.decode("ascii"))).digest()
    except ValueError:
        return None
