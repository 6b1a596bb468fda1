"""``covey serve``: run a job on a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.shared_options import Commands, add_state_dir
from server.commands.stopping import stop_on_signals

if TYPE_CHECKING:
    import argparse


def add_serve_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``serve``."""
    serve = commands.add_parser("serve", help="run a job on a fleet", description=_serve.__doc__)
    serve.add_argument("--bundle", type=Path, required=True, help="the exported bundle")
    serve.add_argument("--job", type=Path, required=True, metavar="job.toml", help="the job (docs/configuration.md)")
    serve.add_argument("--broker", default="embedded", help="embedded (default), mqtt://host:1883 or mqtts://host:8883")
    serve.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    serve.add_argument(
        "--listen",
        default="0.0.0.0",  # noqa: S104 the devices are on the network
        help="address of the HTTP side and the embedded broker (default: %(default)s, every interface)",
    )
    serve.add_argument(
        "--mqtt-port", type=int, default=1883, help="embedded broker's port; 0: a free one (%(default)s)"
    )
    serve.add_argument("--http-port", type=int, default=8080, help="HTTP port; 0: a free one (default: %(default)s)")
    serve.add_argument(
        "--public-url",
        help="HTTP address for the devices, e.g. http://server:8080 (default: --http-port on the broker's host)",
    )
    serve.add_argument("--threads", type=int, default=0, help="threads of the evaluation (default: one per core)")
    for name, what in (("ca", "authority that signed the broker"), ("cert", "own certificate"), ("key", "own key")):
        serve.add_argument(f"--tls-{name}", metavar="FILE", help=f"for mqtts: {what} (PEM)")
    add_state_dir(serve)
    output.add_format(serve)
    serve.set_defaults(run=_serve)


def _serve(args: argparse.Namespace) -> int:
    """Run a job: wait for devices, coordinate its rounds, and write the finished adapter.

    A server that was killed resumes the job when it is started again.
    """
    try:
        from server.serve import ServeOptions, load_job, run_job
        from server.views.progress import watch
        from server.views.summary import summary_text
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
    from edge_runtime.network.address import TlsFiles
    from edge_runtime.network.http_address import check_http_url

    public_url = None if args.public_url is None else check_http_url(args.public_url, may_lack_host=True)
    options = ServeOptions(
        bundle=args.bundle,
        state_dir=args.state_dir,
        fleet=args.fleet,
        broker=args.broker,
        listen=args.listen,
        mqtt_port=args.mqtt_port,
        http_port=args.http_port,
        public_url=public_url,
        threads=args.threads,
        tls=TlsFiles(args.tls_ca, args.tls_cert, args.tls_key),
    )
    fitted, bundle = load_job(args.job, args.bundle)
    stop = stop_on_signals()
    with watch(fitted.job, args.format) as observe:
        summary = run_job(fitted, bundle, options, observe, stop.is_set)
    if summary is None:
        return output.INTERRUPTED
    output.emit(args, {"event": "finished", **summary}, summary_text(summary))
    return 0
