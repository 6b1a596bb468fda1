"""How commands reach a server: by its socket on this machine, or by ``--server`` with a token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from server.client.client import Client
    from server.storage.ledger import Ledger


def add_reaching(parser: argparse.ArgumentParser) -> None:
    """Add ``--state-dir``, ``--server`` and ``--token-file`` to a command."""
    add_state_dir(parser)
    parser.add_argument("--server", metavar="URL", help="a server elsewhere: http://host:port of its --api-port")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="its token, a copy of its api-token (default: $COVEY_TOKEN)"
    )


def open_client(args: argparse.Namespace) -> Client:
    """Return a client for the server that a command's options name.

    Raises:
        ConfigError: the address or the token file cannot be used.
    """
    from edge_runtime.network.http_address import check_http_url
    from server.client.address import socket_path
    from server.client.client import Client, token_from

    if args.server is not None:
        return Client(check_http_url(args.server).rstrip("/"), token=token_from(args.token_file))
    return Client(socket_path=socket_path(args.state_dir))


def ask(args: argparse.Namespace, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Have a running server do something; return its answer.

    Raises:
        NoServerError: no server answers.
        CoveyError: the server refuses it.
    """
    with open_client(args) as client:
        return client.ask(method, path, body)


def look(
    args: argparse.Namespace, path: str, otherwise: Callable[[Ledger], dict[str, Any]], **query: str | int
) -> dict[str, Any]:
    """Return what a running server answers; where none runs on this machine, what the ledger says.

    Args:
        args: the command's options.
        path: path after the API's prefix.
        otherwise: reads the same from the ledger.
        query: the query's parameters.

    Raises:
        CoveyError: the server refuses it, or there is no ledger.
    """
    from server.client.client import NoServerError
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE

    try:
        with open_client(args) as client:
            return client.get(path, **query)
    except NoServerError:
        if args.server is not None:
            raise
    return otherwise(Ledger(args.state_dir / LEDGER_FILE, read_only=True))
