"""``covey flash jetson``: make an unpacked Linux_for_Tegra into a device's, before NVIDIA's tools flash it."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.flash_names import given_tokens, names_of
from server.commands.flash_settings import SettingsSource
from server.commands.reaching import add_reaching

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from server.commands.shared_options import Commands
    from server.flash.check import CardReport
    from server.flash.jetson import Login
    from server.flash.l4t import L4t
    from server.flash.payload import Payload

_EXAMPLES = """\
examples:
  sudo covey flash jetson --l4t Linux_for_Tegra --device orin-lab --accept-license
  sudo covey flash jetson --l4t Linux_for_Tegra --device orin-lab --accept-license \\
      --onnxruntime-gpu --extra-index-url URL
  covey flash check --l4t Linux_for_Tegra
then, as NVIDIA describes it for the board: sudo ./flash.sh BOARD internal
"""
_USER = "covey-admin"
_ACCELERATED = "cuda,cpu"


def add_jetson_command(flash: Commands[argparse.ArgumentParser], describe: Callable[[CardReport], list[str]]) -> None:
    """Add ``flash jetson``.

    Args:
        flash: the commands of ``flash``.
        describe: returns a report as lines.
    """
    parser = flash.add_parser(
        "jetson",
        help="an unpacked Linux_for_Tegra for a Jetson",
        description=_jetson.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--l4t", type=Path, required=True, metavar="DIR", help="NVIDIA's folder Linux_for_Tegra")
    parser.add_argument("--device", required=True, metavar="NAME", help="the device that the board becomes")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    who = parser.add_argument_group("first boot")
    who.add_argument("--hostname", metavar="NAME", help="name on the network (default: the device's)")
    who.add_argument(
        "--user", default=_USER, metavar="NAME", help="who logs in (default: the one there, or %(default)s)"
    )
    who.add_argument("--password-file", type=Path, metavar="FILE", help="password (default: made up, and said)")
    who.add_argument("--accept-license", action="store_true", help="NVIDIA's license, which its script asks about")
    who.add_argument("--no-user", action="store_true", help="make none: the board asks at its first boot")
    who.add_argument("--ssh-key", type=Path, metavar="FILE", help="public key (default: first of ~/.ssh/id_*.pub)")
    who.add_argument("--no-ssh", action="store_true", help="no key")
    group = parser.add_argument_group("Covey")
    group.add_argument("--data", type=Path, metavar="FILE", help="private rows for the board (default: added later)")
    group.add_argument("--wheels", type=Path, metavar="DIR", help="take packages from a folder (default: an index)")
    group.add_argument("--index-url", metavar="URL", help="take packages from this index (default: pip's)")
    group.add_argument("--extra-index-url", metavar="URL", help="and from this one, as NVIDIA's for your JetPack")
    group.add_argument("--onnxruntime-gpu", action="store_true", help="ONNX Runtime with CUDA, from one of these")
    group.add_argument(
        "--execution-providers",
        metavar="A,B",
        help=f"for edge.toml (default: cpu; with --onnxruntime-gpu: {_ACCELERATED})",
    )
    group.add_argument("--memory-max", default="80%", metavar="SIZE", help="for the service (default: %(default)s)")
    group.add_argument("--join-tokens", type=Path, metavar="FILE", help="tokens (default: made by this server)")
    group.add_argument("--no-join", action="store_true", help="no token: the board joins no fleet by itself")
    group.add_argument("--expires", default="7d", metavar="TIME", help="until when the token can be used (default: 7d)")
    group.add_argument("--url", help="where devices join (default: the first --host of covey fleet init)")
    add_reaching(parser)
    output.add_format(parser)
    unused = {"batch": None, "wifi": None, "time_zone": None}  # settings of cards that a Jetson is not given
    parser.set_defaults(run=lambda args: _jetson(args, describe), **unused)


def _jetson(args: argparse.Namespace, describe: Callable[[CardReport], list[str]]) -> int:
    """Put a device of the fleet into an unpacked Linux_for_Tegra, before NVIDIA's tools flash it to a Jetson.

    Its root file system gets Covey's device side for its Python, services, a join token, and a user through NVIDIA's
    script. For a Jetson that runs already: covey provision ssh. The same command again makes it another time.
    """
    import dataclasses

    from server.flash.jetson import check_ready, make_jetson
    from server.flash.l4t import look_at_l4t

    (name,), l4t = names_of(args), look_at_l4t(args.l4t)
    providers = _providers(args)
    settings, login = SettingsSource(args).settings(name), _login(args, l4t)
    if args.data is not None and not args.data.is_file():
        raise ConfigError(f"--data {args.data} is no file", "give the file with the private rows")
    plan = _plan(l4t, login, name, providers)
    print("\n".join([l4t.system, *(f"  {line}" for line in plan)]), file=sys.stderr)
    if args.dry_run:
        result = {"system": l4t.system, "python": l4t.python, "plan": plan, "written": False}
        output.emit(args, result, "nothing has been written")
        return 0
    check_ready(l4t, login, accepts_license=args.accept_license, uid=os.geteuid())
    with tempfile.TemporaryDirectory(dir=args.l4t, prefix=".covey-flash-") as folder:
        made = _payload(args, name, l4t, providers, Path(folder))
        report = make_jetson(l4t, settings, login, made)
    if login.password is not None and args.password_file is None:
        print(f"password of {login.user}: {login.password}", file=sys.stderr)
    output.emit(
        args,
        {"l4t": str(args.l4t), "written": True, **dataclasses.asdict(report)},
        "\n".join([str(args.l4t), *describe(report), "next: flash the board with NVIDIA's flash.sh"]),
    )
    return 0


def _providers(args: argparse.Namespace) -> tuple[str, ...]:
    from edge_runtime.engines.providers import CPU_ONLY, check_provider_names

    given: str | None = args.execution_providers
    if args.onnxruntime_gpu and args.wheels is None and args.index_url is None and args.extra_index_url is None:
        raise ConfigError(
            "--onnxruntime-gpu needs the place of its package: pip's own index has none for Jetsons",
            "give NVIDIA's index for your JetPack: --extra-index-url URL; or --wheels DIR",
        )
    if given is None:
        return tuple(_ACCELERATED.split(",")) if args.onnxruntime_gpu else CPU_ONLY
    names = tuple(part.strip() for part in given.split(","))
    check_provider_names(names, "onnxruntime")
    if {"cuda", "tensorrt"} & set(names) and not args.onnxruntime_gpu:
        raise ConfigError(
            f"--execution-providers {given} needs ONNX Runtime with CUDA", "add --onnxruntime-gpu --extra-index-url URL"
        )
    return names


def _login(args: argparse.Namespace, l4t: L4t) -> Login:
    from server.flash.jetson import Login

    if l4t.users:
        user = args.user if args.user in l4t.users else min(l4t.users)
        if args.user not in (user, _USER):
            raise ConfigError(
                f"{l4t.rootfs} has user {', '.join(sorted(l4t.users))} already, and no {args.user}", f"--user {user}"
            )
        return Login(user)
    if args.no_user:
        return Login(args.user, asks_at_boot=True)
    if args.password_file is None:
        return Login(args.user, secrets.token_urlsafe(12).replace("-", "x"))
    try:
        password = args.password_file.read_text().strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--password-file {args.password_file} cannot be read ({error})", "give a text file"
        ) from error
    if re.fullmatch(r"[^\s-][^\s]*", password) is None:
        raise ConfigError(
            "the password in --password-file cannot be given to NVIDIA's script",
            "it has no spaces, does not begin with -, and is not empty",
        )
    return Login(args.user, password)


def _plan(l4t: L4t, login: Login, name: str, providers: tuple[str, ...]) -> list[str]:
    """Return what is done, a line each."""
    from server.flash.l4t import DEFAULT_TARGET, USER_TOOL, WIZARD
    from server.flash.overlay import read_note

    before = read_note(l4t.rootfs)
    lines = [f"device {name}, Python {l4t.python}, execution providers {', '.join(providers)}"]
    if before is not None:
        lines.append(
            f"it is {before['device']}'s already: its files and its token are replaced; the board makes new keys"
        )
    if login.password is not None:
        lines.append(f"{USER_TOOL} makes user {login.user}")
    elif not login.asks_at_boot:
        lines.append(f"{login.user} is there already")
    if l4t.waits_for_wizard:
        lines.append(
            f"{DEFAULT_TARGET} is {WIZARD}, which keeps services from starting: "
            + ("it is left, and asks for a user at the board's screen" if login.asks_at_boot else "it is taken out")
        )
    return lines


def _payload(args: argparse.Namespace, name: str, l4t: L4t, providers: tuple[str, ...], work: Path) -> Payload:
    from edge_runtime.engines.providers import CPU_ONLY
    from server.flash.environment import Sources, make_environment
    from server.flash.payload import Payload

    tokens: Mapping[str, str] = {}
    if args.join_tokens is not None:
        tokens = given_tokens(args.join_tokens, [name])
    elif not args.no_join:
        from server.commands.fleet import make_join_tokens
        from server.trust.tokens import duration_s

        tokens = make_join_tokens(args, [name], duration_s(args.expires))
    print(f"packages for Python {l4t.python} on 64-bit Arm …", file=sys.stderr)
    package = "onnxruntime-gpu" if args.onnxruntime_gpu else "onnxruntime"
    sources = Sources(args.wheels, args.index_url, args.extra_index_url, package)
    made = make_environment(l4t.python, sources, work / "env.tar")
    if not made.has_kernel:
        print(
            "no compiled kernel: NumPy does the work, slower and with the same bits (sudo apt install "
            "gcc-aarch64-linux-gnu)",
            file=sys.stderr,
        )
    rows_name = "rows.jsonl" if args.data is None else f"rows{args.data.suffix}"
    quoted = ", ".join(f'"{provider}"' for provider in providers)
    settings = () if providers == CPU_ONLY else (f"execution_providers = [{quoted}]",)
    return Payload(name, tokens.get(name), made, args.data, rows_name, args.memory_max, edge_settings=settings)
