"""``covey serve``: a fleet's server, which stays. ``covey run``: one job from its files to its finished adapter."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from edge_runtime.notify import notifier_of
from server.commands.shared_options import Commands, add_ray, add_state_dir, ray_of
from server.commands.stopping import stop_on_signals
from server.commands.tracing import add_traces, traced

if TYPE_CHECKING:
    from server.access.gate import Proxy
    from server.serving.host import Host
    from server.serving.options import ServeOptions


_AGAIN_S = 5.0
"""Seconds after which a standby that could not begin waits for its turn again."""


def add_serve_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``serve`` and ``run``."""
    serve = commands.add_parser("serve", help="serve a fleet; jobs come and go", description=_serve.__doc__)
    for moved in ("--bundle", "--job"):
        serve.add_argument(moved, dest=f"moved_{moved[2:]}", help=argparse.SUPPRESS)
    add_addresses(serve)
    add_traces(serve)
    serve.set_defaults(run=_serve)
    add_state_dir(serve)
    output.add_format(serve)
    run = commands.add_parser("run", help="run one job on a fleet, and end", description=_run.__doc__)
    run.add_argument("--bundle", type=Path, required=True, help="the exported bundle")
    run.add_argument("--job", type=Path, required=True, metavar="job.toml", help="the job (docs/configuration.md)")
    add_addresses(run)
    add_traces(run)
    run.set_defaults(run=_run)
    add_state_dir(run)
    output.add_format(run)


def add_addresses(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where a server listens and which broker it uses."""
    parser.add_argument(
        "--broker",
        default="embedded",
        help="embedded (default), mqtt://host:1883 or mqtts://host:8883; a cluster: mqtt://a:1883,b:1883",
    )
    _add_report_connections(parser)
    parser.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    parser.add_argument(
        "--listen",
        help="address that devices connect to (default: 0.0.0.0, every interface, after covey fleet init; "
        "else 127.0.0.1, this machine only)",
    )
    parser.add_argument(
        "--mqtt-port",
        type=int,
        help="embedded broker's port; 0: a free one (default: 8883, with TLS, after covey fleet init; else 1883)",
    )
    parser.add_argument("--http-port", type=int, default=8080, help="HTTP port; 0: a free one (default: %(default)s)")
    parser.add_argument(
        "--public-url",
        help="HTTP address for the devices, e.g. http://server:8080 (default: --http-port on the broker's host)",
    )
    _add_operators(parser)
    _add_ledger(parser)
    add_ray(parser, "replay large adapters and evaluate")
    parser.add_argument(
        "--join-port",
        type=int,
        default=8443,
        help="HTTPS port where devices join, after covey fleet init (%(default)s)",
    )
    parser.add_argument("--approve-joins", action="store_true", help="devices that join wait for covey device approve")
    parser.add_argument(
        "--announce",
        action="store_true",
        help="announce port and authority in the local network (mDNS), for covey-edge join without an address",
    )
    parser.add_argument(
        "--mosquitto",
        type=Path,
        metavar="DIR",
        help="with --broker: keep the revoked devices up to date in the files of covey fleet mosquitto --out DIR",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of the evaluation (default: as many as may run at once)"
    )
    for name, what in (("ca", "authority that signed the broker"), ("cert", "own certificate"), ("key", "own key")):
        parser.add_argument(f"--tls-{name}", metavar="FILE", help=f"for mqtts: {what} (PEM)")
    parser.add_argument(
        "--sign-key", type=Path, metavar="FILE", help="sign all messages with this private P-256 key (PEM)"
    )
    parser.add_argument(
        "--device-keys",
        type=Path,
        metavar="DIR",
        help="with --sign-key: believe only devices that have a file NAME.pem there (public key or certificate)",
    )


def _add_report_connections(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--report-connections",
        type=int,
        default=1,
        metavar="N",
        help="connections to the broker that share the reports, where it has shared subscriptions: for clusters, and "
        "for brokers that are far away (default: %(default)s, for everything)",
    )


def _add_ledger(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where ledger and blobs are, and whether the server waits for them."""
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help="keep the ledger in PostgreSQL: postgresql://user@host/database, password in ~/.pgpass (default: a file "
        "in --state-dir, which remembers the address)",
    )
    parser.add_argument(
        "--blobs",
        metavar="URL",
        help="keep adapters, logs and deltas in a bucket: s3://bucket/prefix, with keys, region and endpoint from "
        "AWS_* or ~/.aws (default: folders in --state-dir, which remembers the address)",
    )
    parser.add_argument(
        "--blob-mirror",
        metavar="URL",
        help="a cache before the blobs, which devices ask first: https://cdn.example/blobs",
    )
    parser.add_argument(
        "--standby",
        action="store_true",
        help="wait until the server that uses this --state-dir and its ledger has ended, and go on in its place",
    )


def _add_operators(parser: argparse.ArgumentParser) -> None:
    """Add the options of the operator's API and its pages."""
    parser.add_argument(
        "--api-port",
        type=int,
        help="TCP port of the operator's API, with a token (default: only a socket in --state-dir)",
    )
    parser.add_argument("--api-listen", default="127.0.0.1", help="address of --api-port (default: %(default)s)")
    parser.add_argument(
        "--api-url",
        metavar="URL",
        help="where browsers reach it, behind a proxy: https://covey.example",
    )
    parser.add_argument(
        "--operators",
        type=Path,
        metavar="FILE",
        help="operators of --api-port, a line NAME TOKEN each (mode 0600; default: the one token in api-token)",
    )
    parser.add_argument(
        "--operator-header", metavar="HEADER", help="with --operator-proxy: the header with the name of who signed in"
    )
    parser.add_argument(
        "--operator-proxy", metavar="ADDRESS", help="the address of the proxy that alone is believed --operator-header"
    )


def options_of(args: argparse.Namespace) -> ServeOptions:
    """Return a server's options from those of a command.

    Raises:
        ConfigError: the server is not installed, an address is none, or one of --sign-key and --device-keys is missing.
    """
    try:
        from server.serving.options import ServeOptions, default_listen, default_mqtt_port
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.http_address import check_http_url
    from edge_runtime.signing.key_files import ServerKeys

    if (args.sign_key is None) != (args.device_keys is None):
        raise ConfigError(
            "--sign-key and --device-keys belong together",
            "give both, or neither: a server that signs believes only devices that sign",
        )
    return ServeOptions(
        state_dir=args.state_dir,
        fleet=args.fleet,
        broker=args.broker,
        listen=args.listen or default_listen(args.state_dir),
        mqtt_port=default_mqtt_port(args.state_dir) if args.mqtt_port is None else args.mqtt_port,
        http_port=args.http_port,
        public_url=None if args.public_url is None else check_http_url(args.public_url, may_lack_host=True),
        blob_mirror=None if args.blob_mirror is None else check_http_url(args.blob_mirror),
        threads=args.threads,
        tls=TlsFiles(args.tls_ca, args.tls_cert, args.tls_key),
        api_port=args.api_port,
        api_listen=args.api_listen,
        api_url=None if args.api_url is None else _origin(args.api_url),
        operators=args.operators,
        operator_proxy=_operator_proxy(args),
        join_port=args.join_port,
        approve_joins=args.approve_joins,
        announce=args.announce,
        mosquitto=args.mosquitto,
        signing=None if args.sign_key is None else ServerKeys(args.sign_key, args.device_keys),
        ledger=args.ledger,
        standby=args.standby,
        blobs=args.blobs,
        ray=ray_of(args),
        report_connections=_report_connections(args.report_connections),
    )


def _report_connections(count: int) -> int:
    from server.serving.report_group import MOST

    if not 1 <= count <= MOST:
        raise ConfigError(
            f"--report-connections {count} cannot be",
            f"give a number from 1, which is one connection for everything, to {MOST}",
        )
    return count


def _origin(url: str) -> str:
    """Return the origin of ``--api-url``, as browsers send it."""
    from urllib.parse import urlsplit

    from edge_runtime.network.http_address import check_http_url

    parts = urlsplit(check_http_url(url).lower())
    if parts.path.strip("/") or parts.query:
        raise ConfigError(f"--api-url {url} has a path", "write https://host, with :port where it is another than 443")
    return f"{parts.scheme}://{parts.netloc}"


def _operator_proxy(args: argparse.Namespace) -> Proxy | None:
    """Return the proxy that is believed who has signed in."""
    from ipaddress import ip_address

    from server.access.gate import Proxy

    if args.operator_header is None and args.operator_proxy is None:
        return None
    if args.operator_header is None or args.operator_proxy is None:
        raise ConfigError(
            "--operator-header and --operator-proxy belong together",
            "give both: a header is believed from the proxy's address only",
        )
    header = args.operator_header.lower()
    if re.fullmatch(r"[a-z][a-z0-9-]*", header) is None or header in ("authorization", "cookie", "host", "origin"):
        raise ConfigError(f"--operator-header {args.operator_header} cannot be used", "as X-Forwarded-Email")
    try:
        return Proxy(str(ip_address(args.operator_proxy)), header)
    except ValueError as error:
        raise ConfigError(f"--operator-proxy {args.operator_proxy} is no address", "as 192.0.2.7") from error


def _serve(args: argparse.Namespace) -> int:
    """Serve a fleet: its devices are seen and kept in the ledger, and jobs that are submitted run on them.

    The server stays until SIGTERM or Ctrl-C; jobs that are at work then, or when it is killed, go on with the next
    start. Hand it jobs with: covey job submit job.toml --bundle BUNDLE
    """
    if args.moved_bundle is not None or args.moved_job is not None:
        raise ConfigError(
            "covey serve takes no --bundle and no --job: it serves the fleet, and jobs are submitted to it",
            "covey run --bundle BUNDLE --job job.toml runs one job and ends",
        )
    options = options_of(args)
    from server.serving.always_on import serve_or_wait
    from server.serving.stores import StoppedError
    from server.views.progress import fleet_log

    stop, notifier = stop_on_signals(), notifier_of(os.environ, os.getpid())
    with fleet_log(args.format) as (shown, say), traced(args, os.environ, shown) as observe:

        def is_ready(host: Host) -> None:
            say(host.described())
            notifier.ready(f"fleet {options.fleet}")
            notifier.watch()

        try:
            if options.standby:
                say({"fleet": options.fleet, "standby": "until the server before it has ended"})
                notifier.ready("standby")  # systemd must not wait for the other server's end
                notifier.watch()
            while not serve_or_wait(options, observe, stop, is_ready):
                stop.wait(_AGAIN_S)
        except StoppedError:
            return output.INTERRUPTED
        finally:
            notifier.stopping()
    return 0


def _run(args: argparse.Namespace) -> int:
    """Run a job: wait for devices, coordinate its rounds, and write the finished adapter.

    A server that was killed resumes the job when it is started again.
    """
    options = options_of(args)
    from server.serving.loaded_job import load_job
    from server.serving.one_shot import run_job
    from server.serving.stores import StoppedError
    from server.views.progress import watch
    from server.views.summary import summary_text

    fitted, bundle = load_job(args.job, args.bundle)
    stop = stop_on_signals()
    name = fitted.job.name
    with (
        watch(name, fitted.job.rounds, args.format) as shown,
        traced(args, os.environ, lambda _, event: shown(event)) as observe,
    ):
        try:
            summary = run_job(fitted, bundle, options, lambda event: observe(name, event), stop.is_set)
        except StoppedError:
            summary = None
    if summary is None:
        return output.INTERRUPTED
    output.emit(args, {"event": "finished", **summary}, summary_text(summary))
    return 0
