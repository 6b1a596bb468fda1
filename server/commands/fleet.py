"""``covey fleet``: make the fleet's authority and join tokens, and see what its certificates are for."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.reaching import add_reaching, ask
from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands
    from server.trust.folder import Trust

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def add_fleet_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``fleet`` and its commands."""
    fleet = commands.add_parser("fleet", help="make a fleet that devices can trust").add_subparsers(
        required=True, metavar="COMMAND"
    )
    init = fleet.add_parser("init", help="make the fleet's authority", description=_init.__doc__)
    init.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    init.add_argument(
        "--host",
        action="append",
        metavar="NAME",
        help="name or address of this server for devices; may be given again (default: this machine's)",
    )
    init.add_argument("--join-port", type=int, default=8443, help="port where devices join (default: %(default)s)")
    init.set_defaults(run=_init)
    host = fleet.add_parser("host", help="let the server have another name", description=_host.__doc__)
    host.add_argument("host", nargs="+", metavar="NAME", help="a name or an address of the server")
    host.set_defaults(run=_host)
    show = fleet.add_parser("show", help="the fleet's certificates", description=_show.__doc__)
    show.set_defaults(run=_show)
    token = fleet.add_parser("token", help="make one-time join tokens", description=_token.__doc__)
    token.add_argument("names", nargs="*", metavar="NAME", help="the name that a device gets")
    token.add_argument("--count", type=int, metavar="N", help="N tokens for PREFIX-0001, PREFIX-0002, …")
    token.add_argument("--prefix", default="device", help="with --count (default: %(default)s)")
    token.add_argument("--expires", default="1h", metavar="TIME", help="90s, 30m, 1h or 7d (default: %(default)s)")
    token.add_argument("--file", type=Path, metavar="FILE", help="write lines of NAME TOKEN to a new file (mode 0600)")
    token.add_argument("--url", help="where devices join (default: the first --host of covey fleet init)")
    token.set_defaults(run=_token)
    broker = fleet.add_parser("mosquitto", help="a configuration for mosquitto", description=_mosquitto.__doc__)
    broker.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the files")
    broker.add_argument(
        "--host", action="append", metavar="NAME", help="name or address of the broker (default: the server's)"
    )
    broker.add_argument("--port", type=int, default=8883, help="port of the broker (default: %(default)s)")
    broker.set_defaults(run=_mosquitto)
    rotation = fleet.add_parser("rotate-release-key", help="a new key for releases", description=_rotate.__doc__)
    rotation.add_argument("--finish", action="store_true", help="retire the old key")
    rotation.set_defaults(run=_rotate)
    for parser in (init, host, show, broker, rotation):
        add_state_dir(parser)
    add_reaching(token)
    for parser in (init, host, show, token, broker, rotation):
        output.add_format(parser)


def _init(args: argparse.Namespace) -> int:
    """Make a fleet's authority, the server's certificate and the key with which the server signs.

    The files are in trust/ of the state directory; what is there is never overwritten. Give the summary's
    files to your backup: without them every device has to join again.
    """
    _check_installed()
    from server.trust.folder import AUTHORITY_CERT, AUTHORITY_KEY, SIGNING_KEY, init_trust
    from server.trust.release_keys import RELEASE_KEY

    if not 0 < args.join_port < 1 << 16:
        raise ConfigError(f"--join-port {args.join_port} is not between 1 and 65535", "choose another port")
    hosts = [*(args.host or _own_hosts()), *_LOOPBACK]
    trust = init_trust(args.state_dir, args.fleet, hosts, args.join_port, _now())
    keep = [str(trust.folder / name) for name in (AUTHORITY_KEY, AUTHORITY_CERT, SIGNING_KEY, RELEASE_KEY)]
    text = "\n".join(
        [
            f"fleet {trust.fleet} has an authority; its hash is {trust.authority.sha256.hex()}",
            f"the server's certificate is for {', '.join(trust.hosts)}",
            "back up these files now, where nobody else can read them (covey backup does not copy them):",
            *(f"  {path}" for path in keep),
            "without them every device has to join again; whoever has ca-key.pem can speak for every device",
            "next: covey serve, and for each device: covey fleet token NAME",
        ]
    )
    output.emit(args, {**_described(trust), "back_up": keep}, text)
    return 0


def _host(args: argparse.Namespace) -> int:
    """Make the server's certificate anew, for more names or addresses than before; then restart covey serve."""
    _check_installed()
    from server.trust.folder import open_trust, with_server_certificate

    trust = with_server_certificate(open_trust(args.state_dir), _now(), args.host)
    text = f"the server's certificate is for {', '.join(trust.hosts)}; restart covey serve"
    output.emit(args, _described(trust), text)
    return 0


def _show(args: argparse.Namespace) -> int:
    """Show the fleet's name, the hash of its authority, and what the server's certificate is for and how long."""
    _check_installed()
    from server.trust.folder import open_trust

    found = _described(open_trust(args.state_dir))
    lines = [f"{key:20} {', '.join(value) if isinstance(value, list) else value}" for key, value in found.items()]
    output.emit(args, found, "\n".join(lines))
    return 0


def _rotate(args: argparse.Namespace) -> int:
    """Make a new key for releases. Until --finish releases are signed with both, and devices learn the new one.

    They learn it with the next bundle, when they start, and every six hours; a device that was away all the while
    learns it when it renews. With --finish the old key is removed, and devices that hear of it refuse it. A running
    covey serve takes the change at once.
    """
    _check_installed()
    from server.trust.folder import open_trust
    from server.trust.release_keys import RELEASE_KEY, finish_rotation, rotate

    trust = open_trust(args.state_dir)
    keys = (finish_rotation if args.finish else rotate)(trust.folder, trust.fleet, time.time())
    path = trust.folder / RELEASE_KEY
    next_step = (
        "the old key is retired"
        if args.finish
        else "releases are signed with the old and the new key now; when your devices have been here since: --finish"
    )
    text = f"{next_step}\nback up {path} anew, where nobody else can read it"
    found = {"keys": [key.hex() for key in keys.listed.keys], "serial": keys.listed.serial, "back_up": [str(path)]}
    output.emit(args, found, text)
    return 0


def _mosquitto(args: argparse.Namespace) -> int:
    """Write a complete configuration for mosquitto: TLS 1.3, a certificate of each client, an access list by its name.

    covey serve --mosquitto DIR keeps its list of revoked certificates up to date; mosquitto reads it on SIGHUP.
    """
    _check_installed()
    from edge_runtime.network.http_address import url_host
    from server.serving.revocations import revoked_now
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE, has_ledger
    from server.trust.folder import open_trust
    from server.trust.mosquitto import CONFIG, Revoked, write_mosquitto

    if not 0 < args.port < 1 << 16:
        raise ConfigError(f"--port {args.port} is not between 1 and 65535", "choose another port")
    trust, revoked = open_trust(args.state_dir), Revoked()
    if has_ledger(args.state_dir / LEDGER_FILE):
        with contextlib.closing(Ledger(args.state_dir / LEDGER_FILE, read_only=True)) as ledger:
            revoked = revoked_now(ledger, trust.fleet)
    hosts = args.host or trust.hosts
    files = write_mosquitto(trust, args.out, hosts, args.port, revoked, _now())
    address = f"mqtts://{url_host(hosts[0])}:{args.port}"
    text = "\n".join(
        [
            *(str(path) for path in files),
            f"{len(revoked.serials)} certificates are revoked",
            f"let mosquitto's user own the folder:  chown -R mosquitto {args.out}",
            f"then:  mosquitto -c {args.out / CONFIG}",
            f"and:   covey serve --broker {address} --mosquitto {args.out}",
        ]
    )
    output.emit(
        args, {"files": [str(path) for path in files], "revoked": len(revoked.serials), "broker": address}, text
    )
    return 0


def _token(args: argparse.Namespace) -> int:
    """Make a one-time join token for each device. Whoever has one can join under its name, once, until it expires.

    They are shown once; the server keeps only a hash. --format json needs --file: secrets are not printed as JSON.
    """
    _check_installed()
    from server.trust.tokens import duration_s, numbered_names

    if args.format == "json" and args.file is None:
        raise ConfigError("tokens are secret, and are not printed as JSON", "write them to a file: --file FILE")
    if bool(args.names) == (args.count is not None):
        raise ConfigError("name the devices, or give their number", "covey fleet token pi-a pi-b; or --count 100")
    valid_s = duration_s(args.expires)
    names = args.names or numbered_names(args.prefix, args.count, set())
    if args.file is not None:
        _check_new(args.file)
    made = make_join_tokens(args, names, valid_s)
    lines = [f"{name} {token}" for name, token in made.items()]
    if args.file is not None:
        from edge_runtime.files.atomic import write_atomically

        write_atomically(args.file, "".join(f"{line}\n" for line in lines).encode(), is_private=True)
        lines = [f"{len(made)} tokens are in {args.file}; remove it when the devices have joined"]
    result: dict[str, Any] = {"names": list(made), "expires_s": valid_s, "file": str(args.file)}
    output.emit(args, result, "\n".join([*lines, "on the device: covey-edge join TOKEN"]))
    return 0


def make_join_tokens(args: argparse.Namespace, names: list[str], valid_s: float) -> dict[str, str]:
    """Have a running server make tokens; where none runs on this machine, make them here."""
    from server.client.client import NoServerError
    from server.serving.options import only_one
    from server.storage.audit_records import DONE, Asker
    from server.storage.ledger import Ledger, Waiting
    from server.storage.ledger_address import LEDGER_FILE
    from server.trust.folder import join_url, open_trust
    from server.trust.tokens import make_tokens

    if args.server is None:
        trust = open_trust(args.state_dir)
        url = join_url(trust, args.url)
    elif args.url is None:
        raise ConfigError("--server needs --url", "say where the devices join: --url https://server:8443")
    else:
        url = args.url
    try:
        answer = ask(args, "POST", "/tokens", {"names": names, "server_url": url, "valid_s": valid_s})
    except NoServerError:
        if args.server is not None:
            raise
        alone = Waiting(0.0, time.sleep)
        with (
            only_one(args.state_dir),
            contextlib.closing(Ledger(args.state_dir / LEDGER_FILE, waiting=alone)) as ledger,
        ):
            subject = names[0] if len(names) == 1 else f"{len(names)} names"
            entry = ledger.audit_begun(Asker("local", "socket"), "token", subject, f"for {valid_s:g} s")
            made = make_tokens(ledger, trust.authority, url, names, valid_s, ledger.now_s())
            ledger.audit_ended(entry, DONE)
            return made
    found: dict[str, str] = answer["tokens"]
    return found


def _check_new(path: Path) -> None:
    """Check, before tokens are made, that a file can be written and is not there yet."""
    from edge_runtime.files.writable import check_writable

    if path.exists():
        raise ConfigError(f"{path} is there already", "give another file, so that no list of tokens is lost")
    check_writable(path.absolute().parent, "--file")


def _described(trust: Trust) -> dict[str, Any]:
    from edge_runtime.trust.validity import date_words

    return {
        "fleet": trust.fleet,
        "authority_sha256": trust.authority.sha256.hex(),
        "authority_until": date_words(trust.authority.certificate.not_valid_after_utc.timestamp()),
        "server_hosts": trust.hosts,
        "server_until": date_words(trust.server.not_valid_after_utc.timestamp()),
        "server_url": trust.server_url,
        "folder": str(trust.folder),
    }


def _own_hosts() -> list[str]:
    """Return this machine's name, its name on the local network, and the address that it has there."""
    name = socket.gethostname()
    found = [name] if "." in name else [name, f"{name}.local"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which address would be used
        found.append(probe.getsockname()[0])
    return found


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


def _check_installed() -> None:
    try:
        import server.serving.options  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
