"""``covey device``: look at the fleet's devices, tag them, and forget those that are gone."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.protocol.side_messages import MOST_LINES
from server.commands.device_predict import add_device_predict
from server.commands.device_show import add_device_show
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, ask, look, open_client
from server.commands.stopping import stop_on_signals
from server.views.tables import short_table

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands

_LIST = (
    "fleet",
    "device",
    "state",
    "machine",
    "execution_providers",
    "tags",
    "rows",
    "reports",
    "mean_seconds",
    "held_out",
    "adapter_sha256",
    "last_seen",
    "ineligible",
    "reason",
    "quarantine",
)

_FILTERS = ("name", "state", "tag", "board", "version", "standing")
_PENDING = ("fleet", "device", "address", "host", "machine", "system", "covey_version", "key_sha256", "asked_at")

_ANSWER_S = 30.0
"""Seconds that a device may take to send its first line: it may be training."""
_FOLLOW_S = 60
_ASK_AGAIN_S = 30.0
_LOOK_S = 0.5


def add_device_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``device`` and its commands."""
    device = commands.add_parser("device", help="look at devices, tag and forget them").add_subparsers(
        required=True, metavar="COMMAND"
    )
    for name, help_text, run in (
        ("list", "all devices", _list),
        ("approve", "let a device join that waits", _approve),
        ("reject", "turn a device away that waits", _reject),
        ("revoke", "revoke a device's certificates", _revoke),
        ("release", "let a device out of quarantine", _release),
        ("rename", "give a device another name", _rename),
        ("tag", "give a device a tag", _tag),
        ("untag", "take a tag from a device", _untag),
        ("forget", "forget a device that is gone", _forget),
        ("logs", "what a device logs", _logs),
    ):
        parser = device.add_parser(name, help=help_text, description=run.__doc__)
        if run is not _list:
            parser.add_argument("device", help="name of the device")
        if run is _logs:
            parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
            parser.add_argument("-n", "--lines", type=int, default=200, help="last lines (default: %(default)s)")
        if run is _list:
            _add_filters(parser)
        if run is _rename:
            parser.add_argument("new_name", metavar="NEW_NAME", help="its new name")
        if run in (_tag, _untag):
            parser.add_argument("tag", help='the tag; jobs name it by devices = "tag:TAG"')
        add_reaching(parser)
        output.add_format(parser)
        parser.set_defaults(run=needs_server(run))
    add_device_show(device)
    add_device_predict(device)


def _list(args: argparse.Namespace) -> int:
    """List all devices that ever announced themselves; without a running server, from the ledger."""
    from server.storage.registry_queries import DeviceFilter
    from server.views.device import held_out_text
    from server.views.registry import device_list

    if args.pending:
        waiting = ask(args, "GET", "/joins")
        output.emit(args, waiting, short_table(waiting["joins"], _PENDING))
        return 0
    given = {key: value for key in _FILTERS if (value := getattr(args, key)) is not None}
    wanted = DeviceFilter(**{"text" if key == "name" else key: value for key, value in given.items()})
    asked = {"q" if key == "name" else key: value for key, value in given.items()}
    found = look(args, "/devices", lambda ledger: {"devices": device_list(ledger, wanted), "next": None}, **asked)
    while found.get("next"):  # only a server answers page by page
        with open_client(args) as client:
            page = client.get("/devices", after=found["next"], **asked)
        found = {"devices": found["devices"] + page["devices"], "next": page["next"]}
    found = {"devices": found["devices"]}
    rows = [
        {**device, "held_out": device["held_out"] and held_out_text(device["held_out"])} for device in found["devices"]
    ]
    output.emit(args, found, short_table(rows, _LIST))
    return 0


def _add_filters(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``list``."""
    parser.add_argument("--pending", action="store_true", help="only devices that wait for approval")
    parser.add_argument("--name", metavar="TEXT", help="only those whose name contains this, in any case")
    parser.add_argument("--state", help="only those in this state: online, busy, offline, lost, silent")
    parser.add_argument("--tag", help="only those with this tag")
    parser.add_argument("--board", help="only those on this board, as their profile names it")
    parser.add_argument("--version", help="only those with this version of Covey")
    parser.add_argument(
        "--standing",
        choices=("free", "ineligible", "resting", "quarantine"),
        help="only those that nothing keeps from work, or that this keeps from it",
    )


def _approve(args: argparse.Namespace) -> int:
    """Let a device join that waits for approval; compare its key_sha256 with the one that the device shows."""
    answer = ask(args, "POST", f"/devices/{args.device}/approve")
    output.emit(args, answer, f"{args.device} may join; it has its certificate in a few seconds")
    return 0


def _reject(args: argparse.Namespace) -> int:
    """Turn a device away that waits for approval; its token is used up."""
    answer = ask(args, "POST", f"/devices/{args.device}/reject")
    output.emit(args, answer, f"{args.device} is turned away, and its token is used up")
    return 0


def _release(args: argparse.Namespace) -> int:
    """Let a device out of quarantine, into which the server puts a name that two machines use: one must be off now."""
    answer = ask(args, "POST", f"/devices/{args.device}/release")
    output.emit(args, answer, f"{args.device} is in no quarantine any more")
    return 0


def _revoke(args: argparse.Namespace) -> int:
    """Revoke all certificates of a device, and its tokens that are not used: for one that was lost or stolen."""
    answer = ask(args, "POST", f"/devices/{args.device}/revoke")
    output.emit(args, answer, f"{answer['certificates']} certificates of {args.device} are revoked")
    return 0


def _rename(args: argparse.Namespace) -> int:
    """Give a device another name. It takes it when it asks the server next: covey-edge renew, or within six hours."""
    answer = ask(args, "POST", f"/devices/{args.device}/rename", {"name": args.new_name})
    output.emit(args, answer, f"{args.device} is named {args.new_name} from its next start on")
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
    """Forget a device that is gone: its entry, its tags and its profiles; what it did in jobs stays.

    Its certificates and tokens are revoked.
    """
    answer = ask(args, "DELETE", f"/devices/{args.device}")
    output.emit(args, answer, f"{args.device} is forgotten")
    return 0


def _logs(args: argparse.Namespace) -> int:
    """Show the last lines of a device's log; they come from the device, without private rows. With -f: follow it.

    The lines before a crash are sent with the device's next start, and are shown too.
    """
    if not 1 <= args.lines <= MOST_LINES:
        raise ConfigError(f"--lines {args.lines} is not between 1 and {MOST_LINES}", "a device keeps its last lines")
    stop = stop_on_signals()
    path = f"/devices/{args.device}/logs"
    asked_at, shown, waited_until = -_ASK_AGAIN_S, 0, time.monotonic() + _ANSWER_S
    with open_client(args) as client:
        while not stop.is_set():
            if (args.follow or shown == 0) and time.monotonic() - asked_at >= _ASK_AGAIN_S:
                lines = args.lines if shown == 0 else 0
                client.ask("POST", path, query={"lines": lines, "follow_s": _FOLLOW_S if args.follow else 0})
                asked_at = time.monotonic()
            found = client.get(path, after=shown)["lines"]
            for line in found:
                shown = line["number"]
                output.emit(args, line, _line(line))
            if not args.follow and (found or time.monotonic() > waited_until):
                break
            stop.wait(_LOOK_S)
    if shown == 0 and not args.follow:
        raise NetworkError(f"{args.device} sent no line within {_ANSWER_S:g} s", "it may be busy: try again, or -f")
    return 0


def _line(line: dict[str, Any]) -> str:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(line["at_s"]))
    before = f"… {line['dropped']} lines left out\n" if line["dropped"] else ""
    crash = " (before a crash)" if line["reason"] == "crash" else ""
    return f"{before}{at} {line['level']}{crash} {line['text']}"
