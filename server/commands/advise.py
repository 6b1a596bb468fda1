"""``covey advise``: which settings fit a bundle, rows and boards, what they cost, and what they will not give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.profile_commands import PROFILE_DIR
from server.commands.shared_options import add_state_dir

if TYPE_CHECKING:
    import argparse

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.profile import Profile
    from server.advice.board import Board, BoardAdvice
    from server.commands.shared_options import Commands
    from server.storage.records import DeviceRecord


def add_advise_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``covey advise``."""
    parser = commands.add_parser("advise", help="what fits a model, rows and boards", description=_advise.__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="BUNDLE", help="the exported bundle")
    parser.add_argument("--data", type=Path, required=True, metavar="ROWS", help="held-out rows, like the devices' own")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="PROFILE",
        help="a latency.json, the name of a board's folder or of a device; may be repeated "
        "(default: the ledger's devices, else every board of --dir)",
    )
    parser.add_argument(
        "--dir", type=Path, default=PROFILE_DIR, help="folder with a folder for each board (default: %(default)s)"
    )
    parser.add_argument("--fleet", help="the devices' (default: any)")
    parser.add_argument("--cohort", type=int, default=0, help="reports per round (default: one from every device)")
    parser.add_argument("--write", type=Path, metavar="job.toml", help="write a job with these settings too")
    parser.add_argument("--name", default="advised", help="name of that job (default: %(default)s)")
    add_state_dir(parser)
    output.add_format(parser)
    parser.set_defaults(run=needs_server(_advise))


def _advise(args: argparse.Namespace) -> int:
    """Say what each board would do with a bundle: backpropagation or forward passes alone, and what a round costs it.

    Every number comes with its source; what is not known says which command measures it. Nothing is run or sent.

    covey advise --model bundle --data test.jsonl --profile raspberry-pi-5 --profile jetson-orin-nano
    covey advise --model bundle --data test.jsonl --cohort 8 --write job.toml
    """
    import msgspec

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.rows import load
    from edge_runtime.files.atomic import write_atomically
    from server.advice.board import advise
    from server.advice.settings import job_text, settings_for
    from server.advice.text import advice_text

    bundle = _bundle(args.model)
    rows = load(bundle, DataConfig(str(args.data)))
    tokens = max(map(len, rows.rows.tokens))
    about = (bundle.manifest, bundle.sha256, args.name, str(args.data.resolve()), args.cohort)
    boards = _boards(args, bundle.sha256)
    settings = settings_for(*about, backprop=True)
    advices = [advise(board, settings, tokens) for board in boards]
    if settings.backprop_source is not None and all(advice.level is None for advice in advices):
        settings = settings_for(*about, backprop=False)  # no board of this fleet can use [stld]
        reasons = [advice.because for advice in advices]
        advices = [
            msgspec.structs.replace(advise(board, settings, tokens), because=reason)
            for board, reason in zip(boards, reasons, strict=True)
        ]
    if args.write is not None:
        write_atomically(args.write, job_text(settings, _deadline_s(advices)).encode())
    manifest = bundle.manifest
    head = (
        f"{manifest.model.name}, {manifest.model.layers} layers, {manifest.task.kind}; {len(rows.rows)} rows, "
        f"the longest of {tokens} tokens"
    )
    if args.write is not None:
        head += f"\nwritten: {args.write}; start it with covey job submit {args.write} --bundle {args.model}"
    values = {
        "model": manifest.model.name,
        "task": manifest.task.kind,
        "bundle_sha256": bundle.sha256,
        "rows": len(rows.rows),
        "longest_row_tokens": tokens,
        "boards": msgspec.to_builtins(advices),
        "job": settings.fields,
        "written": None if args.write is None else str(args.write),
    }
    output.emit(args, values, advice_text(advices, head))
    return 0


def _bundle(path: Path) -> Bundle:
    """Open the bundle.

    Raises:
        ConfigError: the folder holds a model that was not exported yet.
        BundleError: it holds neither.
    """
    from edge_runtime.bundle.folder import open_bundle
    from edge_runtime.bundle.manifest import MANIFEST_FILE

    if (path / "config.json").is_file() and not (path / MANIFEST_FILE).is_file():
        raise ConfigError(
            f"{path} is a Hugging Face folder, and only a bundle's graphs say what a model takes",
            f"export it first: covey export --model {path} (covey export --help shows tasks, --split and --levels)",
        )
    return open_bundle(path)


def _boards(args: argparse.Namespace, bundle_sha256: str) -> list[Board]:
    """Return the boards that the options name, those of the ledger, or all of --dir.

    Raises:
        ConfigError: there are none, or a named one is unknown.
    """
    from server.profiles.files import LATENCY_FILE, find_profile, read_profile
    from server.storage.device_queries import devices_of, newest_profile
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE, has_ledger

    path = args.state_dir / LEDGER_FILE
    known: list[DeviceRecord] = []
    profiles: dict[str, Profile | None] = {}
    if has_ledger(path):
        ledger = Ledger(path, read_only=True)
        try:
            known = [device for device in devices_of(ledger) if args.fleet in (None, device.fleet)]
            for device in known:
                own = newest_profile(ledger, device.fleet, device.device, bundle_sha256)
                profiles[device.device] = own or newest_profile(ledger, device.fleet, device.device)
        finally:
            ledger.close()
    announced = {device.device: device for device in known}
    if len(announced) < len(known):
        twice = sorted(name for name in announced if sum(device.device == name for device in known) > 1)
        raise ConfigError(f"two fleets of {path} have a device {twice[0]}", "say which fleet: --fleet FLEET")
    if args.profile:
        found = []
        for name in args.profile:
            profile = profiles[name] if name in profiles else find_profile(name, args.dir, path, args.fleet)
            found.append(_board(name, profile, announced.get(name)))
        return found
    if known:
        return [_board(name, profiles[name], device) for name, device in announced.items()]
    folders = sorted(latency.parent for latency in args.dir.glob(f"*/{LATENCY_FILE}"))
    if not folders:
        raise ConfigError(
            f"no board is known: no device in {path}, no profile in {args.dir}", "give --profile FILE, or --state-dir"
        )
    return [_board(folder.name, read_profile(folder), None) for folder in folders]


def _board(name: str, profile: Profile | None, device: DeviceRecord | None) -> Board:
    from server.advice.board import MEASURE, Board, Figure

    capability = {} if device is None else device.birth.get("capability", {})
    only_forward = (
        "the device announced that it trains forward-only" if capability.get("kind") == "forward-only" else None
    )
    if capability.get("bytes_free") is not None:
        memory = Figure(capability["bytes_free"], "free memory that the device announced")
    elif profile is not None and profile.measured is not None and profile.measured.before.memory_free_bytes is not None:
        memory = Figure(profile.measured.before.memory_free_bytes, "free memory when its profile was measured")
    elif profile is not None and profile.facts.memory_bytes is not None:
        source = f"all memory of {profile.facts.board} by its profile; what is free is not known, run {MEASURE}"
        memory = Figure(profile.facts.memory_bytes, source)
    else:
        memory = Figure(None, f"not known; run {MEASURE}")
    return Board(name, profile, memory, only_forward)


def _deadline_s(advices: list[BoardAdvice]) -> int | None:
    """Return three times the slowest board's round in seconds; None: job.toml's default is enough, or none is known."""
    from server.job.job import Job

    slowest = max((advice.seconds.value for advice in advices if advice.seconds.value is not None), default=0.0)
    least = 3 * math.ceil(slowest)
    return least if least > Job(name="any", eval_file="").deadline_s else None
