"""``covey-edge join``: become a device of a fleet. ``covey-edge renew``: renew the certificate."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import __version__, output
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

_WAIT_S = 600.0


def add_join_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``join`` and ``renew``."""
    join = commands.add_parser("join", help="join a fleet with a one-time token", description=_join.__doc__)
    join.add_argument(
        "url", nargs="?", metavar="URL", help="https://server:8443 (default: the token's, or found by mDNS)"
    )
    join.add_argument("token", nargs="?", metavar="TOKEN", help="the token: covey fleet token NAME")
    join.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token, instead of TOKEN")
    join.add_argument("--data", default="data.jsonl", metavar="FILE", help="the private rows (default: %(default)s)")
    join.add_argument("--force", action="store_true", help="change an edge.toml that is another one's; a copy is kept")
    join.add_argument(
        "--wait",
        type=float,
        default=_WAIT_S,
        metavar="SECONDS",
        help="how long to wait for network, clock and approval (default: %(default)s)",
    )
    renew = commands.add_parser("renew", help="renew the certificate", description=_renew.__doc__)
    renew.add_argument("--now", action="store_true", help="also where more than a third of its time is left")
    for parser, run in ((join, _join), (renew, _renew)):
        parser.add_argument("--config", type=Path, default=Path("edge.toml"), metavar="edge.toml")
        output.add_format(parser)
        parser.set_defaults(run=run)


def _join(args: argparse.Namespace) -> int:
    """Join a fleet: make a key on this device, have its certificate signed, and write edge.toml.

    The key never leaves the device. Where no URL is given and the token's does not lead to the server, it is looked for
    in the local network (covey serve --announce; pip install 'covey[mdns]').
    The same command goes on where a power cut has stopped it.
    """
    from edge_runtime.trust.discovery import discover
    from edge_runtime.trust.join import JoinOptions, join
    from edge_runtime.trust.messages import DeviceFacts
    from edge_runtime.trust.token import decode_token

    url, word = _words(args)
    facts = DeviceFacts(socket.gethostname()[:200], platform.machine()[:200], platform.platform()[:200], __version__)
    options = JoinOptions(decode_token(word), args.config.absolute(), url, args.data, args.force, facts, discover)
    until_s = time.monotonic() + args.wait

    def wait(pause_s: float) -> bool:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            return False
        time.sleep(min(pause_s, left_s))
        return True

    edge = join(options, time.time, wait)
    result = {"name": edge.name, "fleet": edge.fleet, "broker": edge.broker, "config": str(args.config)}
    output.emit(
        args,
        result,
        f"{edge.name} has joined fleet {edge.fleet}; {args.config} is written\n"
        f"put the rows where its [data] path says, and start: covey-edge run --config {args.config}",
    )
    return 0


def _words(args: argparse.Namespace) -> tuple[str | None, str]:
    """Return the server's address, if one is given, and the token."""
    given = [word for word in (args.url, args.token) if word is not None]
    if args.token_file is not None:
        try:
            given.append(args.token_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read {args.token_file}: {error}", "check --token-file") from error
    if not given:
        raise ConfigError(
            "there is no token", "covey-edge join https://server:8443 TOKEN; it comes from covey fleet token"
        )
    *urls, token = given
    if len(urls) > 1:
        raise ConfigError("a token is given twice", "give TOKEN or --token-file")
    return (urls[0] if urls else None), token


def _renew(args: argparse.Namespace) -> int:
    """Renew this device's certificate, where less than a third of its time is left or the device has a new name.

    covey-edge run does it by itself.
    """
    from edge_runtime.trust.folder import IdentityFolder
    from edge_runtime.trust.identity import read_identity
    from edge_runtime.trust.keys import name_of
    from edge_runtime.trust.renew import renew_if_due
    from edge_runtime.trust.validity import date_words

    config = args.config.absolute()
    renewed = renew_if_due(config, time.time(), is_due=args.now, asks_name=True)
    found = read_identity(IdentityFolder(config).path) if renewed is None else renewed
    until = date_words(found.certificate.not_valid_after_utc.timestamp())
    said = "has a new certificate" if renewed else "has a certificate that is not due yet"
    name = name_of(found.certificate)
    output.emit(
        args,
        {"name": name, "renewed": renewed is not None, "valid_until": until},
        f"{name} {said}, valid until {until}",
    )
    return 0
