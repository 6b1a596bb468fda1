"""Sessions of a process share a TLS context: each connection shows its own member's certificate, from any thread."""

from __future__ import annotations

import concurrent.futures
import contextlib
import datetime as dt
import socket
import ssl
import threading
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from edge_runtime.errors import ConfigError
from edge_runtime.network.address import TlsFiles
from edge_runtime.trust.keys import certificate_pem, key_pem, new_key
from server.swarm.members import make_members, names_of
from server.swarm.shared_tls import MemberTls, SharedTls
from server.trust.folder import init_trust

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAMES = names_of(12)


class Listener:
    """Takes connections with TLS, and answers each with the name in the certificate that it was shown."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._socket.getsockname()[1])
        self._threads: list[threading.Thread] = []
        self._take = threading.Thread(target=self._take_all)
        self._take.start()

    def _take_all(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
                self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as wrapped:
            shown = wrapped.getpeercert(binary_form=True)
            assert shown is not None
            (name,) = x509.load_der_x509_certificate(shown).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            wrapped.sendall(str(name.value).encode())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._take.join()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files of members, and with a broker's certificate."""
    root = tmp_path_factory.mktemp("fleet")
    now = dt.datetime.now(dt.timezone.utc)
    trust = init_trust(root / "state", "default", ["127.0.0.1"], 8443, now)
    make_members(root / "state", root / "members", NAMES)
    key = new_key()
    (root / "members" / "broker-key").write_bytes(key_pem(key))
    certificate = trust.authority.broker(["127.0.0.1"], key.public_key(), now)
    (root / "members" / "broker").write_text(certificate_pem(certificate))
    return root / "members"


@pytest.fixture
def listener(folder: Path) -> Iterator[Listener]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "broker", folder / "broker-key")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    made = Listener(context)
    yield made
    made.close()


def files_of(folder: Path, name: str) -> TlsFiles:
    return TlsFiles(str(folder / "ca.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}-key.pem"))


def test_every_connection_shows_its_own_members_certificate(folder: Path, listener: Listener) -> None:
    """Handshakes are made while other members' connections are begun with the same context."""
    shared, begun = SharedTls(str(folder / "ca.pem")), threading.Barrier(len(NAMES))

    def name_seen(name: str) -> str:
        plain = socket.create_connection(("127.0.0.1", listener.port), timeout=60)
        tls = MemberTls(shared, files_of(folder, name))
        with tls.wrap_socket(plain, "127.0.0.1", do_handshake_on_connect=False) as wrapped:
            begun.wait(60)  # the context has another member's certificate by now, but for one of them
            wrapped.do_handshake()
            return wrapped.recv(64).decode()

    with concurrent.futures.ThreadPoolExecutor(len(NAMES)) as threads:
        assert list(threads.map(name_seen, NAMES)) == NAMES


def test_files_that_cannot_be_used_are_named(folder: Path, listener: Listener) -> None:
    mixed = TlsFiles(str(folder / "ca.pem"), str(folder / f"{NAMES[0]}.pem"), str(folder / f"{NAMES[1]}-key.pem"))
    with (
        socket.create_connection(("127.0.0.1", listener.port)) as plain,
        pytest.raises(ConfigError, match="does not belong to the certificate"),
    ):
        SharedTls(mixed.ca_file).wrap(plain, "127.0.0.1", mixed)
