"""``covey probe``: how far a frozen model gets on labelled rows, the baseline of a fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from export.commands.lists import names

if TYPE_CHECKING:
    import argparse


def add_probe_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``probe``."""
    parser = commands.add_parser(
        "probe", help="how far a frozen model gets on labelled rows", description=_probe.__doc__
    )
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="local model folder")
    parser.add_argument("--labels", required=True, help="names of the labels, separated by commas")
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="training rows (.jsonl or .csv)")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="held-out rows")
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="longer rows are cut to this many tokens (default: %(default)s)"
    )
    output.add_format(parser)
    parser.set_defaults(run=_probe)


def _probe(args: argparse.Namespace) -> int:
    """Fit a linear probe to the frozen model's features: the baseline that fine-tuning has to beat."""
    try:
        from export.probe import linear_probe
        from export.source.folder import look_at
    except ImportError as error:
        raise ConfigError(f"the exporter is not installed ({error})", "pip install 'covey[export]'") from error
    result = linear_probe(look_at(args.model_dir), names(args.labels), args.train, args.test, args.max_tokens)
    values = {"loss": result.loss, "accuracy": result.accuracy, "train_rows": result.train_rows}
    text = f"linear probe on {result.train_rows} rows: loss {result.loss:.4f}, accuracy {result.accuracy:.3f}"
    output.emit(args, values, text)
    return 0
