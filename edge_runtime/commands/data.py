"""``covey-edge data check``: check every private row, line by line, and count tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from edge_runtime.data.examples import DataConfig


def add_data_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``data check``."""
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
    output.add_format(check)
    check.set_defaults(run=_data_check)


def _data_check(args: argparse.Namespace) -> int:
    """Check every row and say which lines are wrong; with a bundle, also how many tokens the rows have."""
    import msgspec

    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.data.examples import DataConfig

    config = read_edge_config(args.config).data if args.config else DataConfig(path="")
    fields = ("text_field", "label_field", "prompt_field", "completion_field")
    config = msgspec.structs.replace(
        config, path=str(args.data or config.path), **{f: getattr(args, f) for f in fields if getattr(args, f)}
    )
    if not config.path:
        raise ConfigError("no file to check", "give --config edge.toml or --data FILE")
    task = _task_of(args)
    rows, counts = _checked_rows(args, config, task)
    result: dict[str, object] = {"path": config.path, "rows": rows} | ({} if counts is None else {"labels": counts})
    lines = [f"{config.path}: {rows} rows, all good"]
    lines += [f"  {label}: {count}" for label, count in (counts or {}).items()]
    if task is not None:
        from edge_runtime.bundle.folder import open_bundle
        from edge_runtime.data.rows import load_rows, special_token_counts

        bundle = open_bundle(args.bundle)
        lengths = sorted(len(ids) for ids in load_rows(bundle, config).tokens)
        median, longest = lengths[len(lengths) // 2], lengths[-1]
        cut = sum(length >= task.max_tokens for length in lengths)
        result |= {"tokens_median": median, "tokens_max": longest, "rows_at_max_tokens": cut}
        lines.append(f"  tokens: median {median}, longest {longest}; {cut} rows reach the limit of {task.max_tokens}")
        special = special_token_counts(bundle, config)
        result["special_tokens"] = special
        lines += [
            f"  special token {token} stands in {count} rows: the model reads it as that token, not as text"
            for token, count in special.items()
        ]
    output.emit(args, result, "\n".join(lines))
    return 0


def _checked_rows(args: argparse.Namespace, data: DataConfig, task: Task | None) -> tuple[int, dict[str, int] | None]:
    """Return how many rows there are, and how many of each label; None where the task has no labels."""
    from edge_runtime.data.examples import label_counts, read_completions, read_rows

    if (args.task if task is None else task.kind) == CAUSAL_LM:
        return len(read_completions(Path(data.path), data.prompt_field, data.completion_field)), None
    labels = task.labels if task is not None else [label.strip() for label in (args.labels or "").split(",")]
    if len(labels) < 2:
        raise ConfigError("the labels are not known", "give --bundle BUNDLE or --labels A,B")
    rows = read_rows(Path(data.path), labels, data.text_field, data.label_field)
    return len(rows), label_counts(rows, labels)


def _task_of(args: argparse.Namespace) -> Task | None:
    from edge_runtime.bundle.manifest_file import read_manifest

    return read_manifest(args.bundle)[0].task if args.bundle else None
