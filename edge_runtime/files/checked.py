"""JSON documents of one's own with a hash of themselves in them: one flipped bit on a card is noticed.

Most flipped bits leave a JSON document that can be read and says something else: a number, a hash, a report.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import msgspec

_CHECK = re.compile(rb',"sha256_of_the_rest":"([0-9a-f]{64})"\}\Z')


def encode_checked(document: msgspec.Struct) -> bytes:
    """Return a struct with at least one field as a JSON object, with the SHA-256 of its bytes as its last field."""
    data = msgspec.json.encode(document)
    check = hashlib.sha256(data).hexdigest().encode()
    return data[:-1] + b',"sha256_of_the_rest":"' + check + b'"}'


def decode_checked(data: bytes, *, type: Any) -> Any:  # noqa: A002, ANN401 as msgspec.json.decode calls it
    """Return a document as a type; one without a hash, as earlier versions of Covey wrote it, is taken as it is.

    The type must forbid unknown fields: then a hash whose own bytes are damaged is noticed as well.

    Raises:
        ValueError: the document is not what was written.
        msgspec.DecodeError: it is no JSON, or of another type.
    """
    found = _CHECK.search(data)
    if found is not None:
        data = data[: found.start()] + b"}"
        if hashlib.sha256(data).hexdigest().encode() != found[1]:
            raise ValueError("its bytes are not the ones that were written: a bit of it has changed")
    return msgspec.json.decode(data, type=type)
