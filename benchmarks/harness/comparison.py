"""What a comparison of methods has for each model, and its command line."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness.provenance import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Setup:
    """The size of a comparison with one model.

    Attributes:
        export_flags: flags of ``covey export`` for the model's task and splits.
        layers: layers of the model.
        rounds: rounds of a job.
        eval_every: rounds from one evaluation to the next.
        held_out_movies: movies of the validation rows; the test rows have as many.
        rows_per_movie: held-out rows of each movie.
        start_movies: movies of the rows at which a new head starts, see server.samples.reviews.divide; 0 where the
            model has no new head, or where the head starts anywhere.
        max_tokens: longer rows are cut.
        seeds: seeds of the runs on the test rows.
    """

    export_flags: tuple[str, ...]
    layers: int
    rounds: int
    eval_every: int
    held_out_movies: int
    rows_per_movie: int = 1
    start_movies: int = 0
    max_tokens: int = 48
    seeds: tuple[int, ...] = (1, 2, 3)


def quick(setup: Setup) -> Setup:
    """Return the setup of ``--quick``: four rounds, one seed."""
    return dataclasses.replace(setup, rounds=4, eval_every=2, seeds=setup.seeds[:1])


def parser_of(description: str | None, name: str, models: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser of the options that every comparison takes.

    Args:
        description: shown by ``--help``.
        name: the comparison's name; its results file and its working folder are called by it.
        models: names of the models that can be chosen.
    """
    results, workdir = ROOT / "benchmarks" / "results" / f"{name}.jsonl", ROOT / ".covey" / name
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=sorted(models), default="minilm", help="(default: %(default)s)")
    parser.add_argument("--results", type=Path, default=results, help="results file (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, default=workdir, help="bundles and rows (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="three entries, one learning rate, one seed, four rounds")
    parser.add_argument("--summary", action="store_true", help="run nothing, summarize the results")
    parser.add_argument("--report", action="store_true", help="run nothing, draw the picture, print Markdown tables")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; None: this process's.

    With ``--quick`` results go to a file of their own, which is emptied before a run.
    """
    args = parser.parse_args(argv)
    if args.quick:
        args.results = args.results.with_name("quick.jsonl")
        if not (args.summary or args.report):
            args.results.unlink(missing_ok=True)
    return args


def picture(name: str) -> Path:
    """Return the file of a report's picture."""
    return ROOT / "docs" / f"{name}.png"
