"""One mosquitto with a listener for each way in which a connection can fail; and servers that are no broker."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import socket
import ssl
import subprocess
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certificates import LOCALHOST, Authority, Pair
from fleets import free_port, mosquitto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DYNAMIC_SECURITY = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
USER, PASSWORD = "pi", "secret"


@dataclass(frozen=True)
class Brokers:
    """The listeners of one mosquitto, by name, and the certificates of its members.

    Attributes:
        ports: port of each listener; all are on 127.0.0.1.
        ca: the authority that signed the listeners.
        other_ca: an authority that signed nothing here.
        member: a member's own certificate; ``expired`` and ``stranger`` are refused.
    """

    ports: dict[str, int]
    ca: Path
    other_ca: Path
    member: Pair
    expired: Pair
    stranger: Pair


@contextlib.contextmanager
def all_brokers(folder: Path) -> Iterator[Brokers]:
    """Run mosquitto with every listener."""
    authority, other = Authority(folder / "authority"), Authority(folder / "other")
    bare = Authority(folder / "bare", is_strict=False)
    certificates = {
        "tls": authority.make("broker"),
        "expired": authority.expired("broker"),
        "not-yet-valid": authority.not_yet_valid("broker"),
        "no-names": authority.make("broker", "keyUsage=digitalSignature"),
        "other-name": authority.make("broker", "subjectAltName=DNS:elsewhere"),
        "client-only": authority.make("broker", f"extendedKeyUsage=clientAuth\n{LOCALHOST}"),
        "bare": bare.make("broker", is_strict=False),
    }
    certificates |= {"mutual": certificates["tls"], "mutual-1.2": certificates["tls"], "named": certificates["tls"]}
    more = {
        "mutual": "require_certificate true\n",
        "mutual-1.2": "require_certificate true\ntls_version tlsv1.2\n",
        "named": "require_certificate true\nuse_identity_as_username true\npassword_file {passwords}\n",
    }
    secured = {name: more.get(name, "") + _tls(authority.ca, pair) for name, pair in certificates.items()}
    secured |= _with_users(folder)
    secured["named"] = secured["named"].replace("{passwords}", str(folder / "passwords"))
    ports = {name: free_port() for name in secured}
    config = "per_listener_settings true\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
    for name, lines in secured.items():
        anonymous = "false" if "password_file" in lines or "plugin" in lines else "true"
        config += f"listener {ports[name]} 127.0.0.1\nallow_anonymous {anonymous}\n{lines}"
    with mosquitto(folder / "mosquitto", config) as port:
        yield Brokers(
            ports | {"plain": port},
            authority.ca,
            other.ca,
            authority.make("member"),
            authority.expired("member"),
            other.make("member"),
        )


def _tls(ca: Path, pair: Pair) -> str:
    return f"cafile {ca}\ncertfile {pair.cert}\nkeyfile {pair.key}\n"


def _with_users(folder: Path) -> dict[str, str]:
    """Return listeners that ask for a password: without and with an access list, and with one on subscriptions."""
    passwords, access = folder / "passwords", folder / "access"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), USER, PASSWORD], check=True, capture_output=True)
    access.write_text(f"user {USER}\ntopic write covey/v1/default/pi/birth\ntopic read covey/v1/default/pi/plan\n")
    listeners = {
        "password": f"password_file {passwords}\n",
        "access": f"password_file {passwords}\nacl_file {access}\n",
    }
    if DYNAMIC_SECURITY is not None:
        rules = folder / "dynamic-security.json"
        rules.write_text(json.dumps(_dynamic_security()))
        listeners["subscriptions"] = f"plugin {DYNAMIC_SECURITY}\nplugin_opt_config_file {rules}\n"
    for path in folder.iterdir():
        path.chmod(0o755 if path.is_dir() else 0o600)
    return listeners


def _dynamic_security() -> dict[str, Any]:
    salt, iterations = b"123456789012", 101
    hashed = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, iterations)
    client = {
        "username": USER,
        "password": base64.b64encode(hashed).decode(),
        "salt": base64.b64encode(salt).decode(),
        "iterations": iterations,
        "roles": [],
    }
    access = {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True}
    return {"defaultACLAccess": access, "clients": [client], "groups": [], "roles": []}


# -- what is no broker ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tcp_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Run a TCP server that treats each connection in a thread; yields its port."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    threading.Thread(target=treat, args=[connection], daemon=True).start()

        def treat(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            ended.set()
            thread.join()


@contextlib.contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    ended = threading.Event()
    with tcp_server(lambda _connection: ended.wait(60) and None) as port:
        try:
            yield port
        finally:
            ended.set()


@contextlib.contextmanager
def ssh_port() -> Iterator[int]:
    """A port that greets as an SSH server does."""

    def greet(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.recv(1000)

    with tcp_server(greet) as port:
        yield port


@contextlib.contextmanager
def old_tls_port(pair: Pair) -> Iterator[int]:
    """A port that speaks TLS 1.1 and nothing newer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(pair.cert, pair.key)
    with warnings.catch_warnings(action="ignore"):  # it is deprecated, and still met
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1

    def secure(connection: socket.socket) -> None:
        context.wrap_socket(connection, server_side=True).recv(1)

    with tcp_server(secure) as port:
        yield port


@contextlib.contextmanager
def http_port() -> Iterator[int]:
    """A web server."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield int(server.server_port)
        finally:
            server.shutdown()
            thread.join()
