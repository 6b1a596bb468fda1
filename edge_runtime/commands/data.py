"""``covey-edge data check``: check every private row, line by line, and count tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.commands.data_add import add_data_add
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from edge_runtime.bundle.manifest import Task
    from edge_runtime.data.config import DataConfig


def add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``data check`` and ``data add``."""
    data = commands.add_parser("data", help="look at the private rows").add_subparsers(required=True, metavar="COMMAND")
    check = data.add_parser("check", help="check every row, line by line", description=_data_check.__doc__)
    check.add_argument("--config", type=Path, metavar="edge.toml", help="take file and fields from the configuration")
    check.add_argument("--data", type=Path, help="the file or directory, instead of the configuration's")
    check.add_argument("--bundle", type=Path, help="take the labels from this bundle, and count tokens")
    check.add_argument("--labels", help="the labels, separated by commas, where there is no bundle yet")
    check.add_argument(
        "--task", choices=("classify", CAUSAL_LM), default="classify", help="what the rows are for, without a bundle"
    )
    check.add_argument("--text-field", help="field with the text (default: text)")
    check.add_argument("--label-field", help="field with the label (default: label)")
    check.add_argument("--prompt-field", help="causal-lm: field with the prompt (default: prompt)")
    check.add_argument("--completion-field", help="causal-lm: field with the completion (default: completion)")
    check.add_argument("--messages-field", help="causal-lm: field with a conversation (default: messages)")
    check.add_argument("--encoding", help="how characters are stored, as windows-1252 (default: auto)")
    check.add_argument("--delimiter", help="CSV: the character between columns, or tab (default: auto)")
    check.add_argument("--quote", help="CSV: the character around a text (default: auto)")
    check.add_argument("--columns", help="CSV without a header line: its columns, separated by commas")
    check.add_argument(
        "--label-name",
        action="append",
        metavar="WRITTEN=LABEL",
        help="the label that the file writes otherwise; repeat it",
    )
    check.add_argument(
        "--transform", metavar="MODULE:FUNCTION", help="your own Python, which gets each row and returns the row to use"
    )
    output.add_format(check)
    check.set_defaults(run=_data_check)
    add_data_add(data)


def _data_check(args: argparse.Namespace) -> int:
    """Check every row and say which lines are wrong, and what is probably not meant.

    With a bundle, also how many tokens the rows have, and which are cut.

    covey-edge data check --config edge.toml --bundle bundle
    covey-edge data check --data reviews.csv --labels no,yes --delimiter ';' --text-field review
    """
    from edge_runtime.commands.data_check import Checked, report_of

    data, task = _config_of(args), _task_of(args)
    if not data.path:
        raise ConfigError("no file to check", "give --config edge.toml or --data FILE")
    if task is not None:
        from edge_runtime.bundle.folder import open_bundle
        from edge_runtime.data.rows import load, special_token_counts

        bundle = open_bundle(args.bundle)
        loaded = load(bundle, data)
        labels = None if task.kind == CAUSAL_LM else task.labels
        special = special_token_counts(bundle, loaded.used)
        checked = Checked(data, labels, loaded, loaded.own, loaded, task.max_tokens, special)
    else:
        from edge_runtime.data.examples import Reading, read_examples, read_prompts

        labels = None if args.task == CAUSAL_LM else _labels(args)
        reading: Reading[Any] = read_prompts(data) if labels is None else read_examples(data, labels)
        checked = Checked(data, labels, reading, len(reading.rows))
    values, lines = report_of(checked)
    output.emit(args, values, "\n".join(lines))
    return 0


def _labels(args: argparse.Namespace) -> list[str]:
    labels = [label.strip() for label in (args.labels or "").split(",")]
    if len(labels) < 2:
        raise ConfigError("the labels are not known", "give --bundle BUNDLE or --labels A,B")
    return labels


def _config_of(args: argparse.Namespace) -> DataConfig:
    """Return what the configuration says of the data, and the command line instead where it says something.

    Raises:
        ConfigError: an option is not valid; see read_edge_config.
    """
    import msgspec

    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.transform import beside

    data = read_edge_config(args.config).data if args.config else DataConfig(path="")
    names = (
        "text_field",
        "label_field",
        "prompt_field",
        "completion_field",
        "messages_field",
        "encoding",
        "delimiter",
        "quote",
        "transform",
    )
    changes: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name)}
    if args.transform:
        changes["transform"] = beside(args.transform, args.config.resolve().parent if args.config else Path.cwd())
    if args.columns:
        changes["columns"] = [name.strip() for name in args.columns.split(",")]
    if args.label_name:
        pairs = [pair.rpartition("=") for pair in args.label_name]
        wrong = next((pair for pair, parts in zip(args.label_name, pairs, strict=True) if not parts[1]), None)
        if wrong is not None:
            raise ConfigError(f"--label-name {wrong!r} has no =", "write it as the file's name=the label: 1.0=good")
        changes["label_names"] = data.label_names | {written: label for written, _, label in pairs}
    try:
        return msgspec.structs.replace(data, path=str(args.data or data.path), **changes)
    except ValueError as error:
        raise ConfigError(str(error), "see [data] in docs/configuration.md") from error


def _task_of(args: argparse.Namespace) -> Task | None:
    from edge_runtime.bundle.manifest_file import read_manifest

    return read_manifest(args.bundle)[0].task if args.bundle else None
