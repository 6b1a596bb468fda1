"""``covey advise``: which settings fit a bundle, rows and boards, what they cost, and what they will not give."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.profile_commands import PROFILE_DIR
from server.commands.reaching import add_reaching

if TYPE_CHECKING:
    import argparse

    from edge_runtime.bundle.folder import Bundle
    from server.advice.board import BoardAdvice
    from server.commands.shared_options import Commands


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
        "(default: the devices of --server or the ledger, else every board of --dir)",
    )
    parser.add_argument(
        "--dir", type=Path, default=PROFILE_DIR, help="folder with a folder for each board (default: %(default)s)"
    )
    parser.add_argument("--fleet", help="the devices' (default: any)")
    parser.add_argument("--cohort", type=int, default=0, help="reports per round (default: one from every device)")
    parser.add_argument("--write", type=Path, metavar="job.toml", help="write a job with these settings too")
    parser.add_argument("--name", default="advised", help="name of that job (default: %(default)s)")
    add_reaching(parser)
    output.add_format(parser)
    parser.set_defaults(run=needs_server(_advise))


def _advise(args: argparse.Namespace) -> int:
    """Say what each board would do with a bundle: backpropagation or forward passes alone, and what a round costs it.

    Schedules (backprop devices first, a frozen front) are chosen where the measured runs were better with them.
    Every number comes with its source; what is not known says which command measures it. Nothing is run or sent.

    covey advise --model bundle --data test.jsonl --profile raspberry-pi-5 --profile jetson-orin-nano
    covey advise --model bundle --data test.jsonl --cohort 8 --write job.toml
    covey advise --model bundle --data test.jsonl --server http://server:8090 --token-file api-token
    """
    import msgspec

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.rows import load
    from edge_runtime.files.atomic import write_atomically
    from server.advice.choice import choose
    from server.advice.settings import About, job_text
    from server.advice.text import advice_text, weighed_text
    from server.commands.advise_boards import boards_of, known_of, levels_behind

    bundle = _bundle(args.model)
    rows = load(bundle, DataConfig(str(args.data)))
    tokens = max(map(len, rows.rows.tokens))
    about = About(bundle.manifest, bundle.sha256, args.name, str(args.data.resolve()), args.cohort)
    known = known_of(args, bundle.sha256)
    choice = choose(about, boards_of(args, known), tokens, levels_behind(bundle))
    settings, advices = choice.settings, choice.advices
    if args.write is not None:
        write_atomically(args.write, job_text(settings, _deadline_s(advices)).encode())
    manifest = bundle.manifest
    head = (
        f"{manifest.model.name}, {manifest.model.layers} layers, {manifest.task.kind}; {len(rows.rows)} rows, "
        f"the longest of {tokens} tokens"
    )
    head = "\n".join([head, *map(_so_far, known.jobs), *map(weighed_text, choice.weighed)])
    if args.write is not None:
        head += f"\nwritten: {args.write}; start it with covey job submit {args.write} --bundle {args.model}"
    values = {
        "model": manifest.model.name,
        "task": manifest.task.kind,
        "bundle_sha256": bundle.sha256,
        "rows": len(rows.rows),
        "longest_row_tokens": tokens,
        "jobs": known.jobs,
        "boards": msgspec.to_builtins(advices),
        "schedules": msgspec.to_builtins(choice.weighed),
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


def _so_far(job: dict[str, Any]) -> str:
    """Return what a job with the same bundle has reached."""
    known = [
        f"held-out {what} {job[f'{what}_{when}']:.4g} {words}"
        for what in ("accuracy", "loss")
        for when, words in (("start", "before"), ("end", "after"))
        if job[f"{what}_{when}"] is not None
    ]
    reached = ", ".join(known) or "nothing evaluated yet"
    return f"so far: job {job['job']} with this bundle is {job['state']} after {job['rounds']} rounds: {reached}"


def _deadline_s(advices: list[BoardAdvice]) -> int | None:
    """Return three times the slowest board's round in seconds; None: job.toml's default is enough, or none is known."""
    from server.job.job import Job

    slowest = max((advice.seconds.value for advice in advices if advice.seconds.value is not None), default=0.0)
    least = 3 * math.ceil(slowest)
    return least if least > Job(name="any", eval_file="").deadline_s else None
