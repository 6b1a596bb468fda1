"""``covey rollout``: bring a bundle, an adapter or a version of Covey to the fleet, group by group."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, ask, look
from server.queue.rollout_wish import DEFAULT_GROUPS, DEFAULT_SOAK, DEFAULT_THRESHOLD, seconds, share, sizes
from server.views.tables import short_table

if TYPE_CHECKING:
    from server.commands.shared_options import Commands
    from server.storage.ledger import Ledger

_EXAMPLES = """\
examples:
  covey rollout start adapter reviews --groups 1,5%,25%,100% --soak 1h
  covey rollout start bundle /srv/bundles/reviews-2 --groups 1,100% --approve
  covey rollout start adapter /srv/adapters/9f86d0.bin --bundle /srv/bundles/reviews-2
  covey rollout show
  covey rollout abort 3
"""
_LIST = ("rollout", "kind", "state", "group", "groups", "devices", "switched", "failed", "created_at", "reason")


def add_rollout_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``rollout`` and its commands."""
    rollout = commands.add_parser(
        "rollout",
        help="bring a new version to the fleet, group by group",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).add_subparsers(required=True, metavar="COMMAND")
    for name, help_text, run in (
        ("start", "begin a rollout", _start),
        ("list", "all rollouts", _list),
        ("show", "one rollout, device by device", _show),
        ("pause", "ask no further device", _change),
        ("resume", "go on, or approve the next group", _change),
        ("abort", "take it back from every device", _change),
    ):
        parser = rollout.add_parser(
            name,
            help=help_text,
            description=run.__doc__,
            epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if run is _start:
            _add_start(parser)
        elif run is not _list:
            parser.add_argument("number", type=int, nargs="?", help="number of the rollout (default: the newest)")
        add_reaching(parser)
        output.add_format(parser)
        parser.set_defaults(run=needs_server(run), change=name)


def _add_start(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=("bundle", "adapter", "wheel"), help="what is rolled out")
    parser.add_argument("source", metavar="X", help="its path on the server's machine; an adapter: or a job's name")
    parser.add_argument("--bundle", type=Path, help="bundle of an adapter that is given by its path")
    parser.add_argument(
        "--groups", default=DEFAULT_GROUPS, help="sizes, each with those before it (default: %(default)s)"
    )
    parser.add_argument(
        "--error-threshold",
        default=DEFAULT_THRESHOLD,
        help="failures of a group that are allowed (default: %(default)s)",
    )
    parser.add_argument("--soak", default=DEFAULT_SOAK, help="wait after each group, as 1h (default: %(default)s)")
    parser.add_argument("--approve", action="store_true", help="each group waits for covey rollout resume")


def _start(args: argparse.Namespace) -> int:
    """Begin a rollout. A group begins when the one before has succeeded; over the threshold, all devices go back."""
    source = args.source
    if args.server is None and Path(source).exists():
        source = str(Path(source).resolve())
    order: dict[str, Any] = {
        "kind": args.kind,
        "source": source,
        "groups": sizes(args.groups),
        "bundle": None if args.bundle is None else str(args.bundle.absolute()),
        "error_threshold": share(args.error_threshold),
        "soak_s": seconds(args.soak),
        "approve": args.approve,
    }
    answer = ask(args, "POST", "/rollouts", order)
    counts = ", ".join(str(len(group["devices"])) for group in answer["group_list"])
    output.emit(args, answer, f"rollout {answer['rollout']} is {answer['state']}; devices by group: {counts}")
    return 0


def _list(args: argparse.Namespace) -> int:
    """List all rollouts; without a running server, from the ledger."""
    found = _all(args)
    output.emit(args, found, short_table(found["rollouts"], _LIST))
    return 0


def _show(args: argparse.Namespace) -> int:
    """Show one rollout: its state, and what became of each device."""
    from server.rollouts.described import one_rollout

    rollouts = _all(args)["rollouts"]
    found = one_rollout(rollouts, _number(args, rollouts))
    rows = [{"group": group["group"], **device} for group in found["group_list"] for device in group["devices"]]
    text = f"{short_table([found], _LIST)}\n\n{short_table(rows, ('group', 'device', 'state', 'reason'))}"
    output.emit(args, found, text)
    return 0


def _change(args: argparse.Namespace) -> int:
    """Pause, resume or abort a rollout. Aborted: devices go back, those that are away when they come."""
    number = _number(args, _all(args)["rollouts"])
    answer = ask(args, "POST", f"/rollouts/{number}/{args.change}")
    output.emit(args, answer, f"rollout {number} is {answer['state']}")
    return 0


def _all(args: argparse.Namespace) -> dict[str, Any]:
    def otherwise(ledger: Ledger) -> dict[str, Any]:
        from server.rollouts.described import rollout_list

        return {"rollouts": rollout_list(ledger)}

    return look(args, "/rollouts", otherwise)


def _number(args: argparse.Namespace, rollouts: list[dict[str, Any]]) -> int:
    if args.number is not None:
        return int(args.number)
    if not rollouts:
        raise ConfigError("there has been no rollout", "begin one: covey rollout start --help")
    return int(rollouts[-1]["rollout"])
