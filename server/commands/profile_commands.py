"""``covey profile``: imports, shows, compares and models the profiles of boards and devices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from edge_runtime.protocol.profile import Profile
    from server.commands.shared_options import Commands

PROFILE_DIR = Path("device_profiles")
_BOARD = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_WHICH = "a latency.json, the name of a board's folder, or of a device that published its profile"


def add_profile_commands(commands: Commands[argparse.ArgumentParser], state_dir: Path) -> None:
    """Add ``covey profile``.

    Args:
        commands: the commands of ``covey``.
        state_dir: the default of --state-dir.
    """
    profile = commands.add_parser("profile", help="what devices and boards can do").add_subparsers(
        required=True, metavar="COMMAND"
    )
    importer = _add(profile, "import", "save a profile in its board's folder", _import, state_dir)
    importer.add_argument("source", metavar="FILE|DEVICE", help="a profile's file, or a device that published one")
    importer.add_argument("--board", help="name of the board's folder (default: the profile's)")
    importer.add_argument("--replace", action="store_true", help="also where a measured profile is there already")
    show = _add(profile, "show", "one profile", _show, state_dir)
    show.add_argument("profile", metavar="PROFILE", help=_WHICH)
    show.add_argument("--plot", type=Path, metavar="out.png", help="draw it too")
    comparer = _add(profile, "compare", "several profiles of one model", _compare, state_dir)
    comparer.add_argument("profiles", nargs="+", metavar="PROFILE", help=f"{_WHICH}; the first is what others are over")
    comparer.add_argument("--shape", metavar="8x32", help="this one only (default: all that they share)")
    comparer.add_argument("--plot", type=Path, metavar="out.png", help="draw one shape too (default: the largest)")
    history = _add(profile, "history", "what a device published", _history, state_dir)
    history.add_argument("device", help="name of the device")
    model = _add(profile, "model", "profiles of boards that nobody measured", _model, state_dir)
    model.add_argument("boards", nargs="*", metavar="BOARD", help="folders with a board.toml (default: all of them)")
    model.add_argument(
        "--reference", default="ci-machine", metavar="PROFILE", help="the measured one (default: %(default)s)"
    )


def _add(
    commands: Commands[argparse.ArgumentParser],
    name: str,
    what: str,
    run: Callable[[argparse.Namespace], int],
    state_dir: Path,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=run.__doc__)
    parser.add_argument(
        "--dir", type=Path, default=PROFILE_DIR, help="folder with a folder for each board (default: %(default)s)"
    )
    parser.add_argument("--state-dir", type=Path, default=state_dir, help="the server's state (default: %(default)s)")
    parser.add_argument("--fleet", help="the device's (default: any)")
    output.add_format(parser)
    parser.set_defaults(run=needs_server(run))
    return parser


def _find(args: argparse.Namespace, name: str) -> Profile:
    from server.profiles.files import find_profile
    from server.storage.ledger_address import LEDGER_FILE

    return find_profile(name, args.dir, args.state_dir / LEDGER_FILE, args.fleet)


def _import(args: argparse.Namespace) -> int:
    """Write a profile to its board's folder, without the name of the device.

    A measured profile replaces a modelled one; any other existing profile is kept unless --replace is given.
    """
    from edge_runtime.files.atomic import write_atomically
    from edge_runtime.protocol.profile_check import encode_profile
    from server.profiles.files import LATENCY_FILE, read_profile

    profile = msgspec.structs.replace(_find(args, args.source), device=None)
    if args.board is not None:
        if not _BOARD.fullmatch(args.board):
            raise ConfigError(f"{args.board!r} cannot be the name of a board", "use lower-case letters, digits, '-'")
        profile = msgspec.structs.replace(profile, facts=msgspec.structs.replace(profile.facts, board=args.board))
    path = args.dir / profile.facts.board / LATENCY_FILE
    before = read_profile(path) if path.exists() and not args.replace else None
    gives_way = before is None or (before.source, profile.source) == ("modelled", "measured")
    if before is not None and before != profile and not gives_way:
        raise ConfigError(f"{path} is there, and {before.source}", "give --replace, or another --board")
    if before != profile:
        write_atomically(path, encode_profile(profile))
    result = {"path": str(path), "board": profile.facts.board, "source": profile.source, "changed": before != profile}
    output.emit(args, result, f"{path}: {profile.source}" + ("" if result["changed"] else ", unchanged"))
    return 0


def _show(args: argparse.Namespace) -> int:
    """Show a profile; each row says whether it was measured or modelled."""
    from edge_runtime.protocol.profile_check import check_profile
    from edge_runtime.protocol.profile_text import profile_text
    from server.profiles.compare import compare
    from server.profiles.plot import plot_rows

    profile = _find(args, args.profile)
    name = profile.facts.board if profile.device is None else profile.device
    if args.plot is not None:
        plot_rows(compare([(name, profile)]), "shape", f"{name}: {profile.bundle.model}, {profile.source}", args.plot)
    doubts = check_profile(profile)
    values = {"profile": msgspec.to_builtins(profile), "source": profile.source, "doubts": doubts}
    output.emit(args, values, "\n".join([profile_text(profile), *(f"note: {doubt}" for doubt in doubts)]))
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Compare profiles at the graphs and shapes that they share; each row says whether it was measured."""
    from server.profiles.compare import compare, comparison_text
    from server.profiles.plot import plot_rows

    named = [(_label(name), _find(args, name)) for name in args.profiles]
    if len({name for name, _ in named}) < len(named):
        named = list(zip(args.profiles, (profile for _, profile in named), strict=True))
    rows = compare(named)
    if args.shape is not None:
        rows = [row for row in rows if row["shape"] == args.shape]
        if not rows:
            raise ConfigError(f"the profiles have no shape {args.shape} in common", "leave --shape out")
    if args.plot is not None:
        largest = max((row["shape"] for row in rows), key=_size)
        shown = [row for row in rows if row["shape"] == largest]
        plot_rows(shown, "profile", f"{named[0][1].bundle.model}, {largest}", args.plot)
    text = comparison_text(rows)
    if len({profile.bundle.sha256 for _, profile in named}) > 1:
        text += "\nnote: these are different bundles of one model"
    values = {"profiles": [{"profile": name, "source": profile.source} for name, profile in named], "rows": rows}
    output.emit(args, values, text)
    return 0


def _label(name: str) -> str:
    """Return a profile's name for a table: for a file, the name of its board's folder."""
    path = Path(name)
    return path.parent.name if path.name == "latency.json" and path.parent.name else path.name


def _size(shape: str) -> tuple[int, int]:
    rows, _, tokens = shape.partition("x")
    return int(rows) * int(tokens), int(rows)


def _history(args: argparse.Namespace) -> int:
    """Show the profiles that a device published, and why some were refused."""
    from server.profiles.received import profile_history
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE

    ledger = Ledger(args.state_dir / LEDGER_FILE, read_only=True)
    rows: list[dict[str, Any]] = profile_history(ledger, args.device, args.fleet)
    if not rows:
        raise ConfigError(f"nothing is known of a profile of {args.device}", "see: covey device list")
    columns = ("received_at", "fleet", "state", "source", "board", "bundle", "measured_at", "remarks")
    cells = [
        [
            *(row[column] for column in columns[:5]),
            (row["bundle_sha256"] or "-")[:12],
            row["measured_at"],
            "; ".join(row["remarks"]),
        ]
        for row in rows
    ]
    output.emit(args, {"device": args.device, "profiles": rows}, output.table(columns, cells))
    return 0


def _model(args: argparse.Namespace) -> int:
    """Write modelled profiles of boards from the public figures in their board.toml; a measured one is never replaced.

    The times are scaled from those of a measured machine; device_profiles/README.md has the formula.
    """
    from edge_runtime.files.atomic import write_atomically
    from edge_runtime.protocol.profile_check import encode_profile
    from server.profiles.board_model import BOARD_FILE, model_profile, read_board
    from server.profiles.files import LATENCY_FILE, read_profile

    reference = _find(args, args.reference)
    boards = args.boards or sorted(path.parent.name for path in args.dir.glob(f"*/{BOARD_FILE}"))
    if not boards:
        raise ConfigError(f"no folder in {args.dir} has a {BOARD_FILE}", "see device_profiles/README.md")
    written, kept = [], []
    for board in boards:
        path = args.dir / board / LATENCY_FILE
        modelled = model_profile(read_board(args.dir / board / BOARD_FILE), reference)
        if path.exists() and read_profile(path).source == "measured":
            kept.append(board)
            continue
        write_atomically(path, encode_profile(modelled))
        written.append(board)
    lines = [f"{board}: modelled" for board in written] + [f"{board}: measured, left as it is" for board in kept]
    output.emit(args, {"modelled": written, "measured": kept}, "\n".join(lines))
    return 0
