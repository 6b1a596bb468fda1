"""``covey-edge data check``: check every private row, line by line, and count tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.commands.data_add import add_data_add
from edge_runtime.data.problems import counted, listed
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.examples import Completion, Row
    from edge_runtime.data.problems import Problems
    from edge_runtime.data.rows import Loaded


def add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``data check`` and ``data add``."""
    data = commands.add_parser("data", help="look at the private rows").add_subparsers(required=True, metavar="COMMAND")
    check = data.add_parser("check", help="check every row, line by line", description=_data_check.__doc__)
    check.add_argument("--config", type=Path, metavar="edge.toml", help="take file and fields from the configuration")
    check.add_argument("--data", type=Path, help="the file (.jsonl or .csv), instead of the configuration's")
    check.add_argument("--bundle", type=Path, help="take the labels from this bundle, and count tokens")
    check.add_argument("--labels", help="the labels, separated by commas, where there is no bundle yet")
    check.add_argument(
        "--task", choices=("classify", CAUSAL_LM), default="classify", help="what the rows are for, without a bundle"
    )
    check.add_argument("--text-field", help="field with the text (default: text)")
    check.add_argument("--label-field", help="field with the label (default: label)")
    check.add_argument("--prompt-field", help="causal-lm: field with the prompt (default: prompt)")
    check.add_argument("--completion-field", help="causal-lm: field with the completion (default: completion)")
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
    output.add_format(check)
    check.set_defaults(run=_data_check)
    add_data_add(data)


def _data_check(args: argparse.Namespace) -> int:
    """Check every row and say which lines are wrong; with a bundle, also how many tokens the rows have."""
    data, task = _config_of(args), _task_of(args)
    if not data.path:
        raise ConfigError("no file to check", "give --config edge.toml or --data FILE")
    if task is None:
        rows, skipped, notes = _read(args, data)
        counts = None if args.task == CAUSAL_LM else _counts(rows, _labels(args))
        tokens: dict[str, object] = {}
        token_lines: list[str] = []
    else:
        from edge_runtime.bundle.folder import open_bundle
        from edge_runtime.data.rows import load, special_token_counts

        bundle = open_bundle(args.bundle)
        loaded = load(bundle, data)
        rows, skipped, notes = loaded.used, loaded.skipped, loaded.notes
        counts = None if task.kind == CAUSAL_LM else _counts(rows, task.labels)
        tokens, token_lines = _tokens_of(loaded, task, special_token_counts(bundle, loaded.used))
    result: dict[str, object] = {"path": data.path, "rows": len(rows)}
    result |= {} if counts is None else {"labels": counts}
    left_out = [{"line": line, "why": fault.what} for line, fault in skipped]
    result |= {name: found for name, found in (("skipped", left_out), ("notes", list(notes))) if found} | tokens
    found = "all good" if not skipped else f"and {counted(len(skipped), 'row')} left out, because Covey cannot use them"
    lines = [f"{data.path}: {counted(len(rows), 'row')}, {found}", *(f"  {line}" for line in listed(skipped))]
    lines += [f"  {note}" for note in notes]
    lines += [f"  {label}: {count}" for label, count in (counts or {}).items()]
    output.emit(args, result, "\n".join(lines + token_lines))
    return 0


def _tokens_of(loaded: Loaded, task: Task, special: Mapping[str, int]) -> tuple[dict[str, object], list[str]]:
    """Return how long the rows are in tokens, how many were cut, and which special tokens stand in how many of them.

    Returns:
        The same as values and as lines of text.
    """
    lengths = sorted(len(ids) for ids in loaded.rows.tokens)
    median, longest = lengths[len(lengths) // 2], lengths[-1]
    full = sum(length >= task.max_tokens for length in lengths)
    values = {"tokens_median": median, "tokens_max": longest, "rows_at_max_tokens": full, "cut_texts": loaded.cut_texts}
    lines = [f"  tokens: median {median}, longest {longest}; {full} rows reach the limit of {task.max_tokens}"]
    if loaded.cut_texts:
        lines.append(f"  {counted(loaded.cut_texts, 'row')} so long that only a part of the text was tokenised")
    lines += [
        f"  special token {token} stands in {counted(count, 'row')}: the model reads it as that token, not as text"
        for token, count in special.items()
    ]
    return values | {"special_tokens": dict(special)}, lines


def _read(
    args: argparse.Namespace, data: DataConfig
) -> tuple[Sequence[Row] | Sequence[Completion], Problems, Sequence[str]]:
    """Return the rows, those left out, and what was recognised, without a bundle."""
    from edge_runtime.data.examples import read_examples, read_prompts

    if args.task == CAUSAL_LM:
        prompts = read_prompts(data)
        return prompts.rows, prompts.skipped, prompts.notes
    examples = read_examples(data, _labels(args))
    return examples.rows, examples.skipped, examples.notes


def _labels(args: argparse.Namespace) -> list[str]:
    labels = [label.strip() for label in (args.labels or "").split(",")]
    if len(labels) < 2:
        raise ConfigError("the labels are not known", "give --bundle BUNDLE or --labels A,B")
    return labels


def _counts(rows: Sequence[Row] | Sequence[Completion], labels: Sequence[str]) -> dict[str, int]:
    from edge_runtime.data.examples import Row, label_counts

    return label_counts([row for row in rows if isinstance(row, Row)], labels)


def _config_of(args: argparse.Namespace) -> DataConfig:
    """Return what the configuration says of the data, and the command line instead where it says something.

    Raises:
        ConfigError: an option is not valid; see read_edge_config.
    """
    import msgspec

    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.data.config import DataConfig

    data = read_edge_config(args.config).data if args.config else DataConfig(path="")
    names = ("text_field", "label_field", "prompt_field", "completion_field", "encoding", "delimiter", "quote")
    changes: dict[str, Any] = {name: getattr(args, name) for name in names if getattr(args, name)}
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
