"""One TLS context for all sessions of a process, each of which shows a certificate of its own.

A context of its own costs a session a third of the memory of its connection, and time to make. A connection takes over
the certificate that the context has at its begin, and keeps it: so the context gets each member's in turn.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from edge_runtime.network.address import TlsFiles
from edge_runtime.network.tls import load_own, tls_context

if TYPE_CHECKING:
    import socket
    import ssl


class SharedTls:
    """The context, for members of one authority.

    Args:
        ca_file: the authority's certificate (PEM); None: the system's authorities.

    Raises:
        ConfigError: the file is missing, or is no certificate.
    """

    def __init__(self, ca_file: str | None) -> None:
        self._context = tls_context(TlsFiles(ca_file=ca_file))
        self._turn = threading.Lock()

    def wrap(self, connection: socket.socket, host: str, files: TlsFiles) -> ssl.SSLSocket:
        """Return a connection on which TLS is not begun yet, with the certificate of a member; from any thread.

        Raises:
            ConfigError: its files cannot be used.
        """
        with self._turn:
            if files.cert_file is not None:
                load_own(self._context, files.cert_file, files.key_file)
            return self._context.wrap_socket(connection, server_hostname=host, do_handshake_on_connect=False)


class MemberTls:
    """What paho takes for a member's own context: it asks for nothing but these two.

    Args:
        shared: the context.
        files: the member's.
    """

    check_hostname = True

    def __init__(self, shared: SharedTls, files: TlsFiles) -> None:
        self._shared, self._files = shared, files

    def wrap_socket(
        self, connection: socket.socket, server_hostname: str, *, do_handshake_on_connect: bool
    ) -> ssl.SSLSocket:
        """See SharedTls.wrap; paho makes the handshake itself."""
        assert not do_handshake_on_connect  # noqa: S101 else the others would wait for it
        return self._shared.wrap(connection, server_hostname, self._files)
