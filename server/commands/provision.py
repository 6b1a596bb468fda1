"""``covey provision ssh``: make a board that already runs a device of the fleet, over SSH; or take Covey off it."""

from __future__ import annotations

import dataclasses
import getpass
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__, output
from edge_runtime.errors import ConfigError, NetworkError
from edge_runtime.values import NAME_PATTERN
from server.commands.flash import add_sources
from server.commands.installed import needs_server
from server.commands.progress import ByteProgress
from server.commands.reaching import add_reaching, open_client

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from server.commands.shared_options import Commands
    from server.provision.archive import Recipe
    from server.provision.facts import Facts
    from server.provision.plan import Plan, Target, Wanted
    from server.provision.ssh import Remote

_EXAMPLES = """\
examples:
  covey provision ssh pi@jetson.local --device jetson-lab --dry-run
  covey provision ssh pi@jetson.local --device jetson-lab --data rows.jsonl
  covey provision ssh pi@jetson.local --device jetson-lab --uninstall
"""
_ROWS = (".jsonl", ".csv", ".tsv")
_MEMORY = re.compile(r"[1-9]\d{0,14}[KMGT%]?")
_TOKEN_S = 3600.0
_LOOK_S = 0.5


def add_provision_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``provision`` and its command."""
    import argparse

    provision = commands.add_parser("provision", help="set up boards that already run").add_subparsers(
        required=True, metavar="COMMAND"
    )
    ssh = provision.add_parser(
        "ssh",
        help="over SSH",
        description=_ssh.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ssh.add_argument("destination", metavar="USER@HOST", help="as ssh takes it; ~/.ssh/config is read")
    ssh.add_argument("--device", required=True, metavar="NAME", help="the device that the board becomes")
    ssh.add_argument("--dry-run", action="store_true", help="show what would be done, and stop")
    ssh.add_argument("--yes", action="store_true", help="do not ask")
    ssh.add_argument("--wait", type=float, default=300.0, metavar="SECONDS", help="for its birth (default: 300)")
    ssh.add_argument("--replace", action="store_true", help="take over a name that another machine has or had")
    ssh.add_argument("--uninstall", action="store_true", help="take Covey off; identity and rows are kept")
    ssh.add_argument("--purge", action="store_true", help="with --uninstall: remove identity and rows too")
    group = ssh.add_argument_group("SSH")
    group.add_argument("--port", type=int, metavar="PORT", help="(default: ssh's own)")
    group.add_argument("--identity", type=Path, metavar="FILE", help="the key to log in with (default: ssh's own)")
    group.add_argument("--ssh-config", type=Path, metavar="FILE", help="instead of ~/.ssh/config")
    group.add_argument("--ssh-option", action="append", default=[], metavar="KEY=VALUE", help="for ssh -o")
    group.add_argument("--batch", action="store_true", help="ssh asks nothing (default: where there is no terminal)")
    group.add_argument("--ask-sudo", action="store_true", help="ask for the password that sudo wants there")
    group = ssh.add_argument_group("Covey")
    group.add_argument("--data", type=Path, metavar="FILE", help="private rows for the board (default: added later)")
    add_sources(group)
    group.add_argument("--memory-max", default="80%", metavar="SIZE", help="for the service (default: %(default)s)")
    group.add_argument("--url", help="where devices join (default: the first --host of covey fleet init)")
    add_reaching(ssh)
    output.add_format(ssh)
    ssh.set_defaults(run=needs_server(_ssh))


def _ssh(args: argparse.Namespace) -> int:
    """Make a board that runs Debian or Ubuntu a device of the fleet, over SSH.

    What is there is looked at first, and what would be done is shown and asked. Only what differs is changed: the same
    command again changes nothing, and goes on where it was interrupted. It ends when the server has taken the signed
    message with which the device announces itself.
    """
    from server.provision.ssh import Remote, SshOptions

    _check(args)
    options = SshOptions(args.destination, _ssh_flags(args), is_batch=args.batch or not sys.stdin.isatty())
    with tempfile.TemporaryDirectory(prefix="covey-provision-") as folder:
        password = _password(args.destination) if args.ask_sudo else None
        with Remote(options, password) as remote:
            return _uninstall(args, remote) if args.uninstall else _install(args, remote, Path(folder))


def _install(args: argparse.Namespace, remote: Remote, work: Path) -> int:
    from server.flash.environment import Sources
    from server.provision.archive import Recipe, environment_id, rows_name
    from server.provision.board import install, look
    from server.provision.facts import running_version
    from server.provision.plan import plan_install

    fleet, authority, known = _server_says(args)
    facts, target = look(remote)
    sources = Sources(args.wheels, args.index_url)
    recipe = Recipe(
        args.device,
        target,
        sources,
        environment_id(target, sources),
        args.data,
        rows_name(facts, args.data),
        args.memory_max,
    )
    wanted = _wanted(args, recipe, authority, is_known=known is not None)
    plan = plan_install(facts, wanted)
    if not _may_go_on(args, plan, facts, target):
        return 0
    before = None
    if plan.steps:
        if plan.does("join") and known is not None:
            _say(f"{args.device} is known to the server; its older keys are revoked when the board joins")
        before = _device(args, fleet)
        token = lambda: _token(args, wanted)  # noqa: E731
        install(remote, facts, plan, recipe, token, work, _say, ByteProgress("sending"))
    waits = plan.has_rows and args.wait > 0
    kept = None if plan.does("environment") else running_version(facts)
    born = _wait(args, remote, fleet, before, kept or __version__) if waits else None
    lines = ["nothing was to be changed"] if not plan.steps else [f"{step.text}: done" for step in plan.steps]
    if born is not None:
        lines.append(f"{args.device} has announced itself: {born['state']}, {born['rows']} rows")
    else:
        lines += [*plan.notes, f"{args.device}'s birth was not waited for"]
    output.emit(args, _result(args, plan, is_changed=bool(plan.steps), born=born), "\n".join(lines))
    return 0


def _uninstall(args: argparse.Namespace, remote: Remote) -> int:
    from server.provision.board import look_for_removal, uninstall
    from server.provision.plan import plan_uninstall

    facts = look_for_removal(remote)
    plan = plan_uninstall(facts, args.device, is_purge=args.purge)
    if not _may_go_on(args, plan, facts, None):
        return 0
    uninstall(remote, plan, _say)
    lines = ["nothing was to be removed"] if not plan.steps else [f"{step.text}: done" for step in plan.steps]
    if plan.steps:
        lines.append(f"the server still knows it: covey device revoke {args.device}; covey device forget {args.device}")
    output.emit(args, _result(args, plan, is_changed=bool(plan.steps), born=None), "\n".join([*lines, *plan.notes]))
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check what can be checked before the board is reached."""
    if re.fullmatch(NAME_PATTERN, args.device) is None:
        raise ConfigError(f"{args.device!r} cannot be a device's name", "use letters, digits, - _ and .")
    if args.purge and not args.uninstall:
        raise ConfigError("--purge is for --uninstall", "give both to remove identity and rows")
    if args.uninstall and (args.data is not None or args.replace):
        raise ConfigError("--uninstall takes neither --data nor --replace", "leave them out")
    if args.port is not None and not 0 < args.port < 1 << 16:
        raise ConfigError(f"--port {args.port} is not between 1 and 65535", "give the port of SSH on the board")
    if _MEMORY.fullmatch(args.memory_max) is None:
        raise ConfigError(f"--memory-max {args.memory_max!r} is no size", "as 80% or 600M")
    for path, flag in ((args.identity, "--identity"), (args.ssh_config, "--ssh-config"), (args.data, "--data")):
        if path is not None and (not path.exists() or path.is_dir()):  # /dev/null is a configuration too
            raise ConfigError(f"{flag} {path} is no file", "give a file that you can read")
    if args.data is not None and args.data.suffix not in _ROWS:
        raise ConfigError(f"--data {args.data} is no file with rows", f"its name ends in {', '.join(_ROWS)}")


def _ssh_flags(args: argparse.Namespace) -> tuple[str, ...]:
    flags = [] if args.ssh_config is None else ["-F", str(args.ssh_config)]
    flags += [] if args.port is None else ["-p", str(args.port)]
    flags += [] if args.identity is None else ["-i", str(args.identity)]
    return (*flags, *(word for option in args.ssh_option for word in ("-o", option)))


def _password(destination: str) -> str:
    if sys.stdin.isatty():
        return getpass.getpass(f"password for sudo of {destination}: ")
    return sys.stdin.readline().rstrip("\n")


def _server_says(args: argparse.Namespace) -> tuple[str, bytes, Mapping[str, Any] | None]:
    """Return the fleet of the running server, its authority's SHA-256, and what it says of the device."""
    with open_client(args) as client:
        status = client.get("/server")
    if not status["has_authority"]:
        raise ConfigError("the server takes devices without certificates", "covey fleet init, and start it again")
    return str(status["fleet"]), bytes.fromhex(status["authority_sha256"]), _device(args, status["fleet"])


def _device(args: argparse.Namespace, fleet: str) -> Mapping[str, Any] | None:
    from server.provision.birth import find_device

    with open_client(args) as client:
        return find_device(client.get("/devices", q=args.device)["devices"], fleet, args.device)


def _wanted(args: argparse.Namespace, recipe: Recipe, authority: bytes, *, is_known: bool) -> Wanted:
    from server.flash.places import HOME
    from server.provision.archive import sha256_of
    from server.provision.plan import Wanted

    has_rows = args.data is not None
    return Wanted(
        args.device,
        recipe.environment_id,
        recipe.checked_files(),
        f"{HOME}/data/{recipe.rows_name}" if has_rows else None,
        sha256_of(args.data) if has_rows else None,
        is_known=is_known,
        may_replace=args.replace,
        authority=authority,
    )


def _token(args: argparse.Namespace, wanted: Wanted) -> str:
    from server.commands.fleet import make_join_tokens

    return make_join_tokens(args, [wanted.device], _TOKEN_S)[wanted.device]


def _may_go_on(args: argparse.Namespace, plan: Plan, facts: Facts, target: Target | None) -> bool:
    """Show a plan and ask; False: it was to be shown only, or the operator does not want it."""
    about = f"{args.destination}: {facts.words.get('system', '')}"
    about += f", {target.machine}, Python {target.python}" if target is not None else ""
    lines = [about, *(f"  {number}. {step.text}" for number, step in enumerate(plan.steps, 1))]
    lines += [] if plan.steps else ["  nothing is to be done"]
    lines += [f"  note: {note}" for note in plan.notes]
    if args.dry_run:
        output.emit(args, _result(args, plan, is_changed=False, born=None), "\n".join(lines))
        return False
    _say("\n".join(lines))
    if not plan.steps or args.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here: this is no terminal", "give --yes; or --dry-run to look only")
    if input("do this? [y/N] ").strip().lower() in ("y", "yes"):
        return True
    output.emit(args, _result(args, plan, is_changed=False, born=None), "nothing was changed")
    return False


def _wait(
    args: argparse.Namespace, remote: Remote, fleet: str, before: Mapping[str, Any] | None, version: str
) -> Mapping[str, Any]:
    """Wait for the device's birth, as a version of Covey."""
    from server.provision.birth import find_device, is_born, wait_for_birth
    from server.provision.board import journal

    _say(f"waiting until {args.device} announces itself")
    until = time.monotonic() + float(args.wait)

    def wait() -> bool:
        time.sleep(_LOOK_S)
        return time.monotonic() < until

    with open_client(args) as client:
        born = wait_for_birth(
            lambda: client.get("/devices", q=args.device)["devices"],
            lambda devices: find_device(devices, fleet, args.device),
            lambda one: is_born(one, before, version),
            wait,
        )
    if born is None:
        said = journal(remote)
        raise NetworkError(
            f"{args.device} did not announce itself within {args.wait:g} s; its journal says:\n{said or 'nothing'}",
            "mend what it says; the same command goes on from there (--wait for more time)",
        )
    return born


def _result(
    args: argparse.Namespace, plan: Plan, *, is_changed: bool, born: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {
        "device": args.device,
        "host": args.destination,
        "steps": [dataclasses.asdict(step) for step in plan.steps],
        "notes": list(plan.notes),
        "changed": is_changed,
        "born": born is not None,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
