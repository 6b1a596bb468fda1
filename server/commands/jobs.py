"""``covey job list|show|explain`` and ``covey device list``: read the ledger and print it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from server.commands.shared_options import Commands
    from server.storage.ledger import Ledger


def add_job_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``job list|show|explain`` and ``device list``."""
    job = commands.add_parser("job", help="look at jobs").add_subparsers(required=True, metavar="COMMAND")
    show = job.add_parser("show", help="one job, round by round", description=_job_show.__doc__)
    show.add_argument("job", help="name of the job")
    listing = job.add_parser("list", help="all jobs", description=_job_list.__doc__)
    device = commands.add_parser("device", help="look at devices").add_subparsers(required=True, metavar="COMMAND")
    devices = device.add_parser("list", help="all devices", description=_device_list.__doc__)
    explain = job.add_parser("explain", help="why a device was given its arm", description=_job_explain.__doc__)
    explain.add_argument("round", type=int, help="index of the round")
    explain.add_argument("device", help="name of the device")
    explain.add_argument("--job", help="name of the job (default: the only one, or the newest)")
    for parser, command in ((show, _job_show), (explain, _job_explain), (listing, _job_list), (devices, _device_list)):
        add_state_dir(parser)
        output.add_format(parser)
        parser.set_defaults(run=command)


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
    from server.views.summary import job_devices, job_rounds, job_summary, summary_text

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
    text = f"{summary_text(summary)}\n\n{_table(rounds, columns)}\n\n{_table(devices, of_devices)}"
    output.emit(args, {**summary, "round_list": rounds, "device_list": devices}, text)
    return 0


def _job_explain(args: argparse.Namespace) -> int:
    """Show a device's arms in a round, the bandit's estimate of each, and why it chose one."""
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
