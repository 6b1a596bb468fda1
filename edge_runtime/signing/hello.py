"""Checks the signature of a server's hello without taking it: for ``covey-edge doctor``, which is no listener."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ProtocolError
from edge_runtime.protocol.signed import SERVER, decode_envelope
from edge_runtime.protocol.topics import hello_topic
from edge_runtime.signing.keys import KeyBook, read_public_keys
from edge_runtime.signing.verifier import Refused, Verifier

if TYPE_CHECKING:
    from edge_runtime.signing.key_files import DeviceKeys


def check_hello(payload: bytes, fleet: str, keys: DeviceKeys) -> str:
    """Return the id of the server's key that has signed a hello, in hexadecimal digits.

    Its number is not looked at: whether it is newer than the last one that was heard, the device itself decides.

    Raises:
        ConfigError: the server's public key cannot be read.
        ProtocolError: it is not signed, or not with one of the server's keys.
    """
    book = KeyBook()
    book.replace(SERVER, *read_public_keys(Path(keys.server_key_file)))
    topic = hello_topic(fleet)
    checked = Verifier("doctor", fleet, "", book).check(topic, payload)
    if isinstance(checked, Refused):
        raise ProtocolError(
            f"the hello on {topic} is not believed ({checked.reason.value}): {checked.detail}",
            "another server, or somebody else, speaks on this broker; let nobody but the server publish there; "
            "if the server has new keys, join again",
        )
    return decode_envelope(payload).key_id.hex()
