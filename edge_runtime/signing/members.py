"""Makes a member of a signed fleet from its key files: a device, or the server."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.protocol.signed import SERVER
from edge_runtime.signing.keys import KeyBook, KeyFolder, read_private_key, read_public_keys
from edge_runtime.signing.marks import HEARD_HELLO_FILE, HelloFile
from edge_runtime.signing.sequence import SEQUENCE_FILE, SequenceStore
from edge_runtime.signing.signer import Signer
from edge_runtime.signing.transport import SignedTransport, signed_will
from edge_runtime.signing.verifier import Verifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.network.transport import Transport, Will
    from edge_runtime.signing.key_files import DeviceKeys, ServerKeys
    from edge_runtime.signing.keys import Keys, PrivateKey


@dataclass(frozen=True)
class Member:
    """A member of a signed fleet, of one process."""

    signer: Signer
    verifier: Verifier

    def seal_will(self, will: Will) -> Will:
        """Return a last will with its signature; see signed_will."""
        return signed_will(will, self.signer)

    def around(self, transport: Transport) -> SignedTransport:
        """Return a connection that signs and checks."""
        return SignedTransport(transport, self.signer, self.verifier)


def device_member(keys: DeviceKeys, fleet: str, name: str, boot_id: str, state_dir: Path) -> Member:
    """Return a device.

    Args:
        keys: its key files.
        fleet: name of the fleet.
        name: its name.
        boot_id: new with every start of the process.
        state_dir: keeps its message numbers, and the last hello that it has heard.

    Raises:
        ConfigError: a key cannot be used.
    """
    book = KeyBook()
    book.replace(SERVER, *read_public_keys(Path(keys.server_key_file)))
    numbers = SequenceStore(state_dir / SEQUENCE_FILE)
    signer = Signer(name, fleet, boot_id, read_private_key(Path(keys.key_file)), numbers.take)
    return Member(signer, Verifier(name, fleet, boot_id, book, HelloFile(state_dir / HEARD_HELLO_FILE)))


def server_member(
    keys: ServerKeys, fleet: str, state_dir: Path, shared_clock_s: Callable[[], float] | None = None
) -> Member:
    """Return the server; see member_with."""
    return member_with(read_private_key(keys.key_file), KeyFolder(keys.device_keys), fleet, state_dir, shared_clock_s)


def member_with(
    key: PrivateKey, devices: Keys, fleet: str, state_dir: Path, shared_clock_s: Callable[[], float] | None = None
) -> Member:
    """Return the server.

    Args:
        key: it signs with this key.
        devices: the keys of the devices.
        fleet: name of the fleet.
        state_dir: keeps its message numbers.
        shared_clock_s: seconds since 1970 by a clock that it shares with the machines that may be the server in turn,
            each with a ``state_dir`` of its own; None: there are none.
    """
    session = secrets.token_hex(8)
    numbers = SequenceStore(state_dir / SEQUENCE_FILE)
    if shared_clock_s is not None:
        numbers = SequenceStore(state_dir / SEQUENCE_FILE, lambda: int(shared_clock_s() * 1e6), is_shared=True)
    return Member(Signer(SERVER, fleet, session, key, numbers.take), Verifier(SERVER, fleet, session, devices))
