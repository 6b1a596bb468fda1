"""``covey device``: look at the fleet's devices, tag them, and forget those that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime import output
from server.commands.reaching import add_reaching, ask, look
from server.commands.tables import short_table

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands

_LIST = (
    "fleet",
    "device",
    "state",
    "machine",
    "tags",
    "rows",
    "reports",
    "mean_seconds",
    "adapter_sha256",
    "last_seen",
    "ineligible",
    "reason",
)


def add_device_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``device`` and its commands."""
    device = commands.add_parser("device", help="look at devices, tag and forget them").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, help_text, run in (
        ("list", "all devices", _list),
        ("tag", "give a device a tag", _tag),
        ("untag", "take a tag from a device", _untag),
        ("forget", "forget a device that is gone", _forget),
    ):
        parser = device.add_parser(name, help=help_text, description=run.__doc__)
        if run is not _list:
            parser.add_argument("device", help="name of the device")
        if run in (_tag, _untag):
            parser.add_argument("tag", help='the tag; jobs name it by devices = "tag:TAG"')
        add_reaching(parser)
        output.add_format(parser)
        parser.set_defaults(run=run)


def _list(args: argparse.Namespace) -> int:
    """List all devices that ever announced themselves; without a running server, from the ledger."""
    from server.views.summary import device_list

    found = look(args, "/devices", lambda ledger: {"devices": device_list(ledger)})
    output.emit(args, found, short_table(found["devices"], _LIST))
    return 0


def _tag(args: argparse.Namespace) -> int:
    """Give a device a tag, by which jobs can name it. The device may be one that has never been seen."""
    answer = ask(args, "PUT", f"/devices/{args.device}/tags/{args.tag}")
    output.emit(args, answer, f"{args.device} has the tag {args.tag}")
    return 0


def _untag(args: argparse.Namespace) -> int:
    """Take a tag from a device that covey device tag has given it."""
    answer = ask(args, "DELETE", f"/devices/{args.device}/tags/{args.tag}")
    output.emit(args, answer, f"{args.device} has the tag {args.tag} no more")
    return 0


def _forget(args: argparse.Namespace) -> int:
    """Forget a device that is gone: its entry, its tags and its profiles; what it did in jobs stays."""
    answer = ask(args, "DELETE", f"/devices/{args.device}")
    output.emit(args, answer, f"{args.device} is forgotten")
    return 0
