"""``covey flash``: make card images for boards, write them to cards, and read them back."""

from __future__ import annotations

import dataclasses
import datetime as dt
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.flash_jetson import add_jetson_command
from server.commands.flash_names import ask_what_to_do, done_names, enter_done, given_tokens, names_of
from server.commands.flash_settings import SettingsSource, add_settings
from server.commands.progress import ByteProgress
from server.commands.reaching import add_reaching

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from server.commands.shared_options import Commands
    from server.flash.check import CardReport
    from server.flash.flash import Stock
    from server.flash.payload import Payload

_EXAMPLES = """\
examples:
  covey flash rpi --image 2025-12-04-raspios-trixie-arm64-lite.img.xz --device pi-kitchen --out pi-kitchen.img
  covey flash rpi --image raspios-lite.img.xz --device pi-kitchen --write /dev/sda
  covey flash rpi --image raspios-lite.img.xz --batch names.txt --write /dev/sda
  covey flash check pi-kitchen.img
"""


def add_flash_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``flash`` and its commands."""
    import argparse

    flash = commands.add_parser("flash", help="make cards for boards").add_subparsers(required=True, metavar="COMMAND")
    rpi = flash.add_parser(
        "rpi",
        help="a card for a Raspberry Pi",
        description=_rpi.__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    rpi.add_argument("--image", type=Path, required=True, metavar="IMG", help="stock image: .img, .img.xz or .zip")
    rpi.add_argument("--sha256", metavar="HEX", help="of the image (default: in IMG.sha256, if that is there)")
    who = rpi.add_mutually_exclusive_group(required=True)
    who.add_argument("--device", metavar="NAME", help="the device that the card becomes")
    who.add_argument("--batch", type=Path, metavar="FILE", help="a card for each name in a file")
    where = rpi.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="FILE", help="write an image (with --batch: into a folder)")
    where.add_argument("--write", metavar="DISK", help="write to a card, as /dev/sda; see: lsblk")
    rpi.add_argument("--manifest", type=Path, metavar="FILE", help="with --out: also what Raspberry Pi Imager reads")
    rpi.add_argument("--force", action="store_true", help="with --write: also to a disk that is not removable")
    rpi.add_argument("--yes", action="store_true", help="with --write: do not ask")
    add_settings(rpi)
    group = rpi.add_argument_group("Covey")
    group.add_argument("--data", type=Path, metavar="FILE", help="private rows for the card (default: added later)")
    add_sources(group)
    group.add_argument("--memory-max", default="80%", metavar="SIZE", help="for the service (default: %(default)s)")
    group.add_argument("--join-tokens", type=Path, metavar="FILE", help="tokens (default: made by this server)")
    group.add_argument("--no-join", action="store_true", help="no token: the board joins no fleet by itself")
    group.add_argument("--expires", default="7d", metavar="TIME", help="until when a token can be used (default: 7d)")
    group.add_argument("--url", help="where devices join (default: the first --host of covey fleet init)")
    add_reaching(rpi)
    rpi.set_defaults(run=_rpi)
    add_jetson_command(flash, _described)
    check = flash.add_parser("check", help="read a card image back", description=_check.__doc__)
    what = check.add_mutually_exclusive_group(required=True)
    what.add_argument("card", type=Path, nargs="?", metavar="CARD", help="an image; or a card's device file, with sudo")
    what.add_argument("--l4t", type=Path, metavar="DIR", help="an unpacked Linux_for_Tegra")
    check.set_defaults(run=_check)
    deb = flash.add_parser("deb", help="a Debian package of the device side", description=_deb.__doc__)
    deb.add_argument("--python", required=True, metavar="VERSION", help="3.11 for Debian 12, 3.13 for Debian 13")
    deb.add_argument("--machine", choices=("aarch64", "x86_64"), default="aarch64", help="(default: %(default)s)")
    deb.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="folder for it (default: this one)")
    add_sources(deb)
    deb.set_defaults(run=_deb)
    for parser in (rpi, check, deb):
        output.add_format(parser)


def _rpi(args: argparse.Namespace) -> int:
    """Make a card on which a Raspberry Pi boots into a device of the fleet.

    The stock image gets Covey's device side for its Python, services, settings for the first boot, and a join token.
    The board makes its key itself. A card for a name that has had one makes new keys: the older ones are revoked.
    """
    _check_installed()
    names, source = names_of(args), SettingsSource(args)
    _check_places(args, names)
    user_data = _user_data(args.user_data)
    with tempfile.TemporaryDirectory(dir=_work_folder(args), prefix=".covey-flash-") as folder:
        work = Path(folder)
        stock = _opened(args, work)
        payloads = _payloads(args, names, stock, work)
        cards: list[tuple[Path, CardReport]] = []
        for payload in payloads:
            done = _one_card(args, stock, payload, source, user_data, work)
            if done is None:
                break
            cards += [done] if done[1].device is not None else []
        if args.manifest is not None:
            from server.flash.imager import write_manifest

            write_manifest(args.manifest, cards, dt.datetime.now(dt.timezone.utc).date())
    result = {"cards": [{"card": str(path), **dataclasses.asdict(report)} for path, report in cards]}
    said = [line for path, report in cards for line in [f"{path}", *_described(report)]]
    output.emit(args, result, "\n".join([*said, f"{len(cards)} of {len(names)} cards are made"]))
    return 0


def _check(args: argparse.Namespace) -> int:
    """Read a card image, or a Linux_for_Tegra, back: what is on it, what it does at its first boot, what is wrong."""
    _check_installed()
    from server.flash.check import check_card
    from server.flash.jetson import check_jetson

    report = check_card(args.card) if args.l4t is None else check_jetson(args.l4t)
    output.emit(args, dataclasses.asdict(report), "\n".join(_described(report)))
    return 0 if not report.problems else ConfigError.exit_code


def _deb(args: argparse.Namespace) -> int:
    """Make a Debian package of the device side, for one version of Python: environment, service, user.

    On the device: sudo apt install ./covey-edge_…deb, and sudo covey-edge setup TOKEN.
    """
    _check_installed()
    from server.flash.debian import make_package
    from server.flash.environment import Sources
    from server.flash.first_boot import PYTHONS

    if args.python not in PYTHONS:
        raise ConfigError(f"there is no device side for Python {args.python}", f"one of {', '.join(PYTHONS)}")
    if not args.out.is_dir():
        raise ConfigError(f"{args.out} is no folder", f"mkdir -p {args.out}")
    path = make_package(
        args.python,
        args.machine,
        Sources(args.wheels, args.index_url),
        args.out,
        lambda line: print(line, file=sys.stderr),
    )
    output.emit(args, {"package": str(path), "size_bytes": path.stat().st_size}, str(path))
    return 0


def add_sources(parser: argparse._ActionsContainer) -> None:
    """Add the flags that say where packages come from."""
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="take packages from a folder (default: an index)")
    parser.add_argument("--index-url", metavar="URL", help="take packages from this index (default: pip's)")


def _described(report: CardReport) -> list[str]:
    lines = [f"  {report.system}, Python {report.python}; settings by {report.first_boot}"]
    if report.device is not None:
        lines.append(f"  device {report.device}, host name {report.hostname}, Covey {report.covey_version}")
    lines += [f"  {number}. {step}" for number, step in enumerate(report.steps, 1)]
    if report.token_expires_at_s is not None:
        until = dt.datetime.fromtimestamp(report.token_expires_at_s, tz=dt.timezone.utc)
        lines.append(f"  its token can be used until {until:%Y-%m-%d %H:%M} UTC")
    return lines + [f"  PROBLEM: {problem}" for problem in report.problems]


def _check_places(args: argparse.Namespace, names: list[str]) -> None:
    """Check what can be checked before the first byte is written."""
    if args.manifest is not None and args.out is None:
        raise ConfigError("--manifest is of images, and --write makes none", "give --out instead of --write")
    if args.write is not None:
        from server.flash.disk import check_disk, list_disks

        check_disk(args.write, 0, list_disks(), force=args.force)
        return
    folder = args.out if args.batch is not None else args.out.absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", f"mkdir -p {folder}")
    for name in names:
        if _image_of(args, name).exists():
            raise ConfigError(f"{_image_of(args, name)} is there already", "give another file, or remove it")


def _image_of(args: argparse.Namespace, name: str) -> Path:
    path: Path = args.out / f"{name}.img" if args.batch is not None else args.out
    return path


def _work_folder(args: argparse.Namespace) -> Path | None:
    """Return where the unpacked image goes: beside the result, whose disk has room; None: the system's own place."""
    if args.out is None:
        return None
    path: Path = args.out if args.batch is not None else args.out.absolute().parent
    return path


def _user_data(path: Path | None) -> Mapping[str, Any] | None:
    from server.flash.formats import read_user_data

    if path is None:
        return None
    try:
        return read_user_data(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"--user-data {path} cannot be read ({error})", "give a file that you can read") from error


def _opened(args: argparse.Namespace, work: Path) -> Stock:
    from server.flash.flash import open_stock

    stock = open_stock(args.image, work / "stock.img", args.sha256, ByteProgress("unpacking"))
    found = stock.found
    print(f"{found.system}, Python {found.python}; settings by {found.format}: {found.reason}", file=sys.stderr)
    return stock


def _payloads(args: argparse.Namespace, names: list[str], stock: Stock, work: Path) -> list[Payload]:
    from server.flash.environment import Sources, make_environment, shortcomings
    from server.flash.payload import Payload

    tokens: Mapping[str, str] = {}
    if args.join_tokens is not None:
        tokens = given_tokens(args.join_tokens, names)
    elif not args.no_join:
        from server.commands.fleet import make_join_tokens
        from server.trust.tokens import duration_s

        tokens = make_join_tokens(args, names, duration_s(args.expires))
    if args.data is not None and not args.data.is_file():
        raise ConfigError(f"--data {args.data} is no file", "give the file with the private rows")
    print(f"packages for Python {stock.found.python} on 64-bit Arm …", file=sys.stderr)
    sources = Sources(args.wheels, args.index_url)
    made = make_environment(stock.found.python, sources, work / "env.tar", compiled=True)
    for sentence in shortcomings(made):
        print(sentence, file=sys.stderr)
    rows_name = "rows.jsonl" if args.data is None else f"rows{args.data.suffix}"
    return [Payload(name, tokens.get(name), made, args.data, rows_name, args.memory_max) for name in names]


def _one_card(
    args: argparse.Namespace,
    stock: Stock,
    payload: Payload,
    source: SettingsSource,
    user_data: Mapping[str, Any] | None,
    work: Path,
) -> tuple[Path, CardReport] | None:
    """Make a device's card; None: the operator quits. A report without a device: it was skipped."""
    from server.flash.check import CardReport
    from server.flash.flash import make_card

    name = payload.device
    skipped = (Path(name), CardReport("", "", ""))
    if args.batch is not None and name in done_names(args.batch):
        print(f"{name} has its card already (see {args.batch}.done)", file=sys.stderr)
        return skipped
    if args.write is not None and not args.yes:
        answer = ask_what_to_do(name, args.write)
        if answer != "burn":
            return None if answer == "quit" else skipped
    settings = source.settings(name)
    if args.out is not None:
        path = _image_of(args, name)
        report = make_card(stock, path, settings, payload, user_data)
    else:
        path, image = Path(args.write), work / "card.img"
        report = make_card(stock, image, settings, payload, user_data)
        _burn(args, image)
        image.unlink()
    if args.batch is not None:
        enter_done(args.batch, name)
    return path, report


def _burn(args: argparse.Namespace, image: Path) -> None:
    from server.flash.disk import check_disk, eject, list_disks, write_disk

    disk = check_disk(args.write, image.stat().st_size, list_disks(), force=args.force)
    print(f"{disk.path}: {disk.model}, {disk.size_bytes / 1e9:.1f} GB", file=sys.stderr)
    write_disk(image, Path(disk.path), ByteProgress().named)
    is_out = eject(Path(disk.path))
    print("the card can be taken out" if is_out else "everything is on the card; take it out", file=sys.stderr)


def _check_installed() -> None:
    try:
        import yaml  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server]'") from error
