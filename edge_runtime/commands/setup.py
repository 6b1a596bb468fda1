"""``covey-edge setup``: join a fleet as the service that the Debian package has installed, and start it."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError, StorageError, storage_error

if TYPE_CHECKING:
    import argparse

_HOME, _USER, _SERVICE = Path("/var/lib/covey"), "covey", "covey-edge.service"
_SYSTEMD, _SYSTEMCTL = Path("/run/systemd/system"), "/usr/bin/systemctl"


def add_setup_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``setup``."""
    parser = commands.add_parser("setup", help="join a fleet, and start the service", description=_setup.__doc__)
    parser.add_argument("token", nargs="?", metavar="TOKEN", help="the token: covey fleet token NAME")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="a file with the token, instead of TOKEN")
    parser.add_argument(
        "--data",
        default="data/rows.jsonl",
        metavar="FILE",
        help=f"the private rows, below {_HOME} (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="leave another fleet; a copy of edge.toml is kept")
    parser.add_argument("--wait", type=float, default=600.0, metavar="SECONDS", help="see covey-edge join")
    parser.add_argument("--home", type=Path, default=_HOME, help="home of the service (default: %(default)s)")
    parser.add_argument("--user", default=_USER, help="user of the service (default: %(default)s)")
    output.add_format(parser)
    parser.set_defaults(run=_setup)


def _setup(args: argparse.Namespace) -> int:
    """Join a fleet as the user of the service, and start the service.

    For machines with the Debian package covey-edge. The same command goes on where a power cut has stopped it.
    """
    word = _token(args)
    try:
        user = pwd.getpwnam(args.user)
    except KeyError as error:
        raise ConfigError(
            f"there is no user {args.user}", "install the Debian package covey-edge; or covey-edge join"
        ) from error
    if os.geteuid() not in (0, user.pw_uid):
        raise ConfigError(f"setup becomes user {args.user}, and you are not root", "sudo covey-edge setup TOKEN")
    config = args.home / "edge.toml"
    code = _join(args, word, config, user)
    if code:
        return code
    is_started = _start()
    rows = args.home / args.data
    lines = [
        f"{config} is written",
        f"{_SERVICE} {'runs' if is_started else 'is not started: there is no systemd here'}",
    ]
    if not rows.exists():
        lines.append(f"put the rows into {rows}, owned by {args.user}")
    result = {"config": str(config), "rows": str(rows), "has_rows": rows.exists(), "is_started": is_started}
    output.emit(args, result, "\n".join(lines))
    return 0


def _token(args: argparse.Namespace) -> str:
    if (args.token is None) == (args.token_file is None):
        raise ConfigError("give the token, or a file with it", "covey-edge setup TOKEN; or --token-file FILE")
    if args.token is not None:
        return str(args.token)
    try:
        return str(args.token_file.read_text().strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--token-file {args.token_file} cannot be read ({error})", "covey fleet token NAME"
        ) from error


def _join(args: argparse.Namespace, word: str, config: Path, user: pwd.struct_passwd) -> int:
    """Run ``covey-edge join`` as the service's user; the token goes through a file that only this user can read."""
    path = args.home / ".join-token"
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(word)
            os.fchown(file.fileno(), user.pw_uid, user.pw_gid)
    except OSError as error:
        raise storage_error(error, path) from error
    command = [sys.executable, "-m", "edge_runtime.cli", "join", "--token-file", str(path), "--config", str(config)]
    command += ["--data", args.data, "--wait", str(args.wait), *(["--force"] if args.force else [])]
    is_root = os.geteuid() == 0
    try:
        done = subprocess.run(
            command,
            cwd=args.home,
            check=False,
            stdout=subprocess.DEVNULL,
            user=user.pw_uid if is_root else None,
            group=user.pw_gid if is_root else None,
            extra_groups=[] if is_root else None,
        )
    except OSError as error:
        hint = "install the Debian package again"
        raise StorageError(f"covey-edge join cannot be started ({error})", hint) from error
    finally:
        path.unlink(missing_ok=True)
    return done.returncode


def _start() -> bool:
    """Start the service where systemd runs; return whether it has."""
    if not _SYSTEMD.is_dir():
        return False
    done = subprocess.run([_SYSTEMCTL, "restart", _SERVICE], capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ConfigError(
            f"{_SERVICE} does not start: {said[-1] if said else 'systemctl said nothing'}", f"journalctl -u {_SERVICE}"
        )
    return True
