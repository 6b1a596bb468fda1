"""``covey backup``: a server's state to one file, and back."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from server.commands.shared_options import Commands
    from server.storage.backup import Backup


def add_backup_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``backup create`` and ``backup restore``."""
    backup = commands.add_parser("backup", help="a server's state to one file, and back").add_subparsers(
        required=True, metavar="COMMAND"
    )
    create = backup.add_parser("create", help="write a backup; the server may run", description=_create.__doc__)
    create.add_argument("--out", type=Path, metavar="FILE.tar", help="default: covey-backup-DATE.tar")
    create.set_defaults(run=needs_server(_create))
    restore = backup.add_parser("restore", help="make a state directory of a backup", description=_restore.__doc__)
    restore.add_argument("archive", type=Path, metavar="FILE.tar", help="the backup")
    restore.set_defaults(run=needs_server(_restore))
    for parser in (create, restore):
        add_state_dir(parser)
        output.add_format(parser)


def _create(args: argparse.Namespace) -> int:
    """Write a backup of the server's state: ledger, adapters, open deltas and results. The server may be at work.

    Bundles stay where they are: the command names those that jobs need.
    """
    from server.storage.backup import create_backup

    at = dt.datetime.now(dt.timezone.utc)
    out: Path = args.out or Path(f"covey-backup-{at:%Y%m%d-%H%M%S}.tar")
    with _progress("backing up") as progress:
        made = create_backup(args.state_dir, out.resolve(), progress)
    return _emit(args, made, "backup", out)


def _restore(args: argparse.Namespace) -> int:
    """Make a state directory of a backup. Every file's hash is checked; a damaged backup leaves nothing behind.

    covey serve, with the same --state-dir, then goes on with the jobs.
    """
    from server.storage.backup import restore_backup

    if not args.archive.is_file():
        raise ConfigError(f"there is no backup at {args.archive}", "check the path")
    with _progress("restoring") as progress:
        made = restore_backup(args.archive, args.state_dir.resolve(), progress)
    return _emit(args, made, "restored", args.state_dir)


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that is told of each file; shows how far it is on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _path, _size: None
        return
    files = size = 0
    with console.status(what) as status:

        def take(path: str, size_bytes: int) -> None:
            nonlocal files, size
            files, size = files + 1, size + size_bytes
            status.update(f"{what}: {files} files, {size / 1e6:.0f} MB, now {path[:40]}")

        yield take


def _emit(args: argparse.Namespace, made: Backup, event: str, where: Path) -> int:
    result: dict[str, Any] = {
        "event": event,
        "path": str(where),
        "files": made.files,
        "size_bytes": made.size_bytes,
        "bundles": made.bundles,
    }
    text = f"{where}: {made.files} files, {made.size_bytes / 1e6:.1f} MB"
    if made.bundles:
        text += f"\nbundles that its jobs need, and that are not in it: {', '.join(made.bundles)}"
    output.emit(args, result, text)
    return 0
