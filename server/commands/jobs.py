"""``covey job``: submit jobs to a running server, look at them, watch, pause, resume, stop, compare and delete them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, ask, look, open_client
from server.views.tables import short_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from server.commands.shared_options import Commands

_LIST = ("job", "state", "rounds", "rounds_wanted", "reports", "loss_start", "loss_end", "accuracy_end", "reason")
_ROUNDS = (
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
_DEVICES = (
    "device",
    "kind",
    "level",
    "reports",
    "mean_seconds",
    "bytes_up",
    "bytes_down",
    "personal_layers",
    "agreement",
)

_LOOK_S = 1.0
"""Seconds between two looks at a watched job's figures, at least."""


def add_job_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``job`` and its commands."""
    job = commands.add_parser("job", help="submit and look at jobs").add_subparsers(required=True, metavar="COMMAND")
    submit = _command(job, "submit", "enter a job in the queue", _submit)
    submit.add_argument("job", type=Path, metavar="job.toml", help="the job (docs/configuration.md)")
    submit.add_argument("--bundle", type=Path, required=True, help="the exported bundle, on the server's machine")
    submit.add_argument("--after", metavar="JOB", help="wait until this job is finished")
    submit.add_argument("--priority", type=int, default=0, help="a larger one comes first (default: %(default)s)")
    submit.add_argument("--allow-absent", action="store_true", help="its devices and tags may come later")
    _command(job, "list", "all jobs", _list)
    for name, help_text, run in (
        ("show", "one job, round by round", _show),
        ("watch", "follow a job until it has ended", _watch),
        ("pause", "pause a job once its open round is over", _change("pause")),
        ("resume", "go on with a job that was paused or stopped, or has failed", _change("resume")),
        ("stop", "stop a job at once; its closed rounds stay", _change("stop")),
    ):
        one = _command(job, name, help_text, run)
        one.add_argument("job", help="name of the job")
        if name == "watch":
            one.add_argument(
                "--patience-s",
                type=float,
                default=600.0,
                metavar="SECONDS",
                help="how long a server may be away, as when it is started again (default: %(default)s)",
            )
    compare = _command(job, "compare", "two jobs side by side", _compare)
    compare.add_argument("job", help="name of a job")
    compare.add_argument("other", help="name of another one")
    report = _command(job, "report", "one job as an HTML page", _report)
    report.add_argument("job", help="name of the job")
    report.add_argument("--out", type=Path, metavar="FILE", help="the page to write (default: JOB.html)")
    delete = _command(job, "delete", "delete a job with its result", _delete)
    delete.add_argument("job", help="name of the job")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    explain = _command(job, "explain", "why a device was given its arm", _explain)
    explain.add_argument("round", type=int, help="index of the round")
    explain.add_argument("device", help="name of the device")
    explain.add_argument("--job", help="name of the job (default: the only one, or the newest)")


def _command(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    help_text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help_text, description=run.__doc__)
    add_reaching(parser)
    output.add_format(parser)
    parser.set_defaults(run=needs_server(run))
    return parser


def _submit(args: argparse.Namespace) -> int:
    """Enter a job in the queue of a running server. It starts when its devices are free.

    job.toml's eval_file and the bundle are read by the server: they must stay where they are.
    """
    from server.advice.left_open import leaves_open
    from server.job.job import read_job_table

    table = read_job_table(args.job)
    body = {
        "job": table,
        "bundle": str(args.bundle.resolve()),
        "after": args.after,
        "priority": args.priority,
        "allow_absent": args.allow_absent,
    }
    answer = ask(args, "POST", "/jobs", body)
    text = f"job {answer['job']} is {answer['state']}; follow it: covey job watch {answer['job']}"
    if leaves_open(table):
        text += (
            "\n  it leaves open how devices train: where that was measured for such a bundle, the server's log has it"
        )
    output.emit(args, answer, text)
    return 0


def _list(args: argparse.Namespace) -> int:
    """List all jobs, oldest first; without a running server, from the ledger."""
    from server.views.summary import job_list

    found = look(args, "/jobs", lambda ledger: {"jobs": job_list(ledger)})
    output.emit(args, found, short_table(found["jobs"], _LIST))
    return 0


def _show(args: argparse.Namespace) -> int:
    """Show one job: its summary, every attempt at every round, and what each device did."""
    from server.views.summary import job_shown, stands_out_text, summary_text

    found = look(args, f"/jobs/{args.job}", lambda ledger: job_shown(ledger, args.job))
    summary = {key: value for key, value in found.items() if not isinstance(value, (list, dict))}
    rounds, devices = short_table(found["round_list"], _ROUNDS), short_table(found["device_list"], _DEVICES)
    output.emit(
        args, found, "\n\n".join(filter(None, [summary_text(summary), rounds, devices, stands_out_text(found)]))
    )
    return 0


def _watch(args: argparse.Namespace) -> int:
    """Follow a job live until it is finished, paused, stopped or failed; Ctrl-C ends the watching alone.

    On a terminal: a table of rounds, and what each device of the open round does. Elsewhere: lines, or JSON lines. The
    exit code is 0 for a finished job, and 11 for one that ended otherwise. A server that is started again is waited
    for.

    covey job watch reviews
    covey job watch reviews --format json | jq -r 'select(.event == "evaluated") | .accuracy'
    """
    import contextlib
    import time

    import msgspec

    from server.client.client import NoServerError
    from server.client.following import follow
    from server.errors import JobEndedError
    from server.events import Event, RoundClosed
    from server.views.progress import shown

    ended: dict[str, Any] = {}
    looked_at = time.monotonic()
    try:
        with open_client(args) as client:
            rounds = client.get(f"/jobs/{args.job}")["rounds_wanted"]
            with shown(args.job, rounds, args.format) as now:
                for event in follow(
                    client, args.job, args.patience_s, time.monotonic, time.sleep, now.restore, now.away
                ):
                    if event["event"] == "ended":
                        ended = event
                        continue
                    seen = msgspec.convert(event, Event)
                    now.observe(seen)
                    if isinstance(seen, RoundClosed) and time.monotonic() - looked_at > _LOOK_S:
                        looked_at = time.monotonic()
                        with contextlib.suppress(NoServerError):  # then the events end too, and are asked for again
                            now.restore(client.get(f"/jobs/{args.job}"))
    except KeyboardInterrupt:
        _say_it_goes_on(args.job)
        raise
    if ended["state"] != "finished":
        raise JobEndedError(ended)
    output.emit(args, ended, f"job {args.job} is finished")
    return 0


def _say_it_goes_on(job: str) -> None:
    print(
        f"job {job} goes on without this view; look again: covey job watch {job}; end it: covey job stop {job}",
        file=sys.stderr,
    )


def _change(verb: str) -> Callable[[argparse.Namespace], int]:
    def change(args: argparse.Namespace) -> int:
        answer = ask(args, "POST", f"/jobs/{args.job}/{verb}")
        output.emit(args, answer, f"job {answer['job']} is {answer['state']}")
        return 0

    change.__doc__ = {
        "pause": "Pause a job: its open round is finished, and no other one is begun.",
        "resume": "Queue a job again that was paused or stopped, or has failed; it goes on after its closed rounds.",
        "stop": "Stop a job at once: its open round is given up. covey job resume goes on with it.",
    }[verb]
    return change


def _report(args: argparse.Namespace) -> int:
    """Write a page with plots of loss, accuracy, time by device, bytes and arms; it loads nothing from elsewhere.

    covey job report reviews --out reviews.html
    """
    from datetime import datetime, timezone

    from edge_runtime.files.atomic import write_atomically
    from server.report.page import page_of
    from server.views.history import job_history

    history = look(args, f"/jobs/{args.job}/history", lambda ledger: job_history(ledger, args.job))
    page = page_of(history, datetime.now(timezone.utc)).encode()
    path: Path = args.out or Path(f"{args.job}.html")
    write_atomically(path, page)
    output.emit(args, {"job": args.job, "path": str(path), "size_bytes": len(page)}, f"the report is {path}")
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Show two jobs side by side: what they cost, and held-out loss and accuracy after each round."""
    from server.views.compare import compare_jobs, comparison_text

    found = look(
        args, f"/jobs/{args.job}/compare/{args.other}", lambda ledger: compare_jobs(ledger, args.job, args.other)
    )
    output.emit(args, found, comparison_text(found))
    return 0


def _delete(args: argparse.Namespace) -> int:
    """Delete a job that is not at work: its rounds in the ledger, its adapters, and its result."""
    if not args.yes:
        try:
            agreed = input(f"delete job {args.job} with its rounds and its result? [y/N] ").strip().lower() == "y"
        except EOFError:
            agreed = False
        if not agreed:
            raise ConfigError(f"job {args.job} was not deleted", "answer y, or give --yes")
    answer = ask(args, "DELETE", f"/jobs/{args.job}")
    output.emit(args, answer, f"job {answer['job']} is {answer['state']}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    """Show a device's arms in a round, the bandit's estimate of each, and why it chose one."""
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE
    from server.views.explain import explain, explanation_text

    if args.server is not None and args.job is None:
        raise ConfigError("with --server the job must be named", "give --job NAME")
    if args.job is None:
        found = explain(Ledger(args.state_dir / LEDGER_FILE, read_only=True), None, args.round, args.device)
    else:
        path = f"/jobs/{args.job}/explain"
        found = look(
            args,
            path,
            lambda ledger: explain(ledger, args.job, args.round, args.device),
            round=args.round,
            device=args.device,
        )
    output.emit(args, found, explanation_text(found))
    return 0
