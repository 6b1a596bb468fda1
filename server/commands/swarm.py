"""``covey swarm``: many sessions that answer as devices do, to load a broker and a server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError, NetworkError
from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    from server.commands.shared_options import Commands
    from server.swarm.swarm import Seen, SwarmOptions
    from server.swarm.training import TrainingOptions

_EXAMPLES = """\
examples:
  covey swarm --devices 1000 --broker mqtt://broker:1883 --for 5m
  covey swarm --make-members --devices 1000 --members swarm       # on the server, after covey fleet init
  covey swarm --devices 1000 --members swarm --broker mqtts://broker:8883 --processes 2 --format json
  covey swarm --devices 50 --broker mqtt://broker:1883 --bundle bundle --rows rows.jsonl  # real steps, real scalars

Jobs have these devices only with devices = "tag:swarm" in job.toml. docs/swarm.md says how a broker is sized.
"""
_MOST_DEVICES = 99_999


def add_swarm_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``covey swarm``."""
    parser = commands.add_parser(
        "swarm",
        help="many sessions that load a broker and a server",
        description=_swarm.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="how many sessions")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="number of the first (default: %(default)s)")
    parser.add_argument("--broker", metavar="URL", help="mqtt://[user:password@]host:port, or mqtts://…")
    parser.add_argument("--fleet", help="name of the fleet (default: that of --members, else default)")
    parser.add_argument("--members", type=Path, metavar="DIR", help="the devices' keys and certificates")
    parser.add_argument("--ca-file", type=Path, help="without --members: who signed the broker's certificate (PEM)")
    parser.add_argument("--tags", default="", metavar="TAG,…", help="further tags of the devices, beside swarm")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="train this bundle (default: train nothing)")
    parser.add_argument(
        "--rows", type=Path, metavar="FILE", help="with --bundle: rows to train on (default: drawn ones)"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that share them (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=200.0, help="logins a second (default: %(default)s)")
    parser.add_argument("--for", dest="for_s", metavar="TIME", help="90s, 30m, 1h (default: until it is interrupted)")
    parser.add_argument(
        "--make-members", action="store_true", help="only make the devices' keys and certificates, in --members"
    )
    add_state_dir(parser)
    output.add_format(parser)
    parser.set_defaults(run=_swarm)


def _swarm(args: argparse.Namespace) -> int:
    """Connect N devices, each a real session of its own, which send drawn numbers in place of training.

    They are called swarm-00001 and so on, and have the tag swarm. A job gives them work only if its devices are
    "tag:swarm", so they never spoil another job's model. Each session has an MQTT connection, TLS and signatures as a
    device has them. With --bundle each process runs real steps for its sessions, one round after the other, on rows
    that all of them share. The command says every two seconds, on stderr, what it sees, and ends with a summary; its
    exit code is 7 where not all sessions were let in.
    """
    _check(args)
    if args.make_members:
        return _make(args)
    from server.commands.stopping import stop_on_signals
    from server.swarm.summary import progress_line, result_of, summary_text
    from server.swarm.swarm import run_swarm

    def observe(seen: Seen) -> None:
        print(output.printable(progress_line(seen)), file=sys.stderr, flush=True)

    seen = run_swarm(_options(args), stop_on_signals().is_set, observe)
    result = result_of(seen)
    output.emit(args, result, summary_text(result))
    return 0 if seen.counts.devices_connected == seen.devices else NetworkError.exit_code


def _check(args: argparse.Namespace) -> None:
    see = "see covey swarm --help"
    if args.devices < 1 or args.first < 1 or args.first + args.devices - 1 > _MOST_DEVICES:
        raise ConfigError(
            f"--devices {args.devices} from --first {args.first} on are not numbers from 1 to {_MOST_DEVICES}", see
        )
    if args.processes < 1 or not args.rate > 0:
        raise ConfigError("--processes must be at least 1, and --rate above 0", see)
    if args.make_members and args.members is None:
        raise ConfigError("--make-members needs a folder for the devices' files", "give --members DIR")
    if args.rows is not None and args.bundle is None:
        raise ConfigError("--rows are rows to train on, and no bundle is given", "give --bundle DIR too")
    if not args.make_members and args.broker is None:
        raise ConfigError("no broker is given", "give --broker mqtt://host:1883, or mqtts://host:8883")


def _make(args: argparse.Namespace) -> int:
    from server.swarm.members import fleet_of, make_members, names_of

    names = names_of(args.devices, args.first)
    make_members(args.state_dir, args.members, names)
    fleet = fleet_of(args.members)
    text = (
        f"{args.members} has keys and certificates of {names[0]} to {names[-1]}, members of fleet {fleet}\n"
        "whoever has them can speak as these devices; when the tests are over: covey device revoke NAME"
    )
    output.emit(args, {"fleet": fleet, "folder": str(args.members), "first": names[0], "last": names[-1]}, text)
    return 0


def _options(args: argparse.Namespace) -> SwarmOptions:
    from edge_runtime.network.address import TlsFiles, parse_broker
    from server.swarm.members import Member, fleet_of, names_of, read_members, server_key_file
    from server.swarm.swarm import SwarmOptions
    from server.trust.tokens import duration_s

    names, address = names_of(args.devices, args.first), parse_broker(args.broker)
    tags = [tag.strip() for tag in args.tags.split(",") if tag.strip()]
    if args.members is not None:
        fleet = fleet_of(args.members)
        if args.fleet not in (None, fleet):
            raise ConfigError(
                f"{args.members} has devices of fleet {fleet}, and --fleet is {args.fleet}", "leave --fleet out"
            )
        members, key_file = read_members(args.members, names), server_key_file(args.members)
    else:
        fleet, key_file = args.fleet or "default", None
        tls = None if args.ca_file is None else TlsFiles(ca_file=str(args.ca_file))
        members = [Member(name, tls) for name in names]
    return SwarmOptions(
        address=address,
        fleet=fleet,
        members=members,
        server_key_file=key_file,
        tags=tags,
        processes=args.processes,
        rate=args.rate,
        for_s=None if args.for_s is None else duration_s(args.for_s),
        training=_training(args),
    )


def _training(args: argparse.Namespace) -> TrainingOptions | None:
    if args.bundle is None:
        return None
    from server.swarm.training import TrainingOptions

    return TrainingOptions(args.bundle, args.rows, min(args.processes, args.devices))
