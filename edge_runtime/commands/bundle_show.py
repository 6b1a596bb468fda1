"""``bundle show`` and ``bundle diff``: what a bundle is, and in what two bundles differ."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.bundle.levels import kind_of, trained_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_runtime.bundle.levels import Level

DIFFERENT = 1
"""Exit code of ``bundle diff`` where the bundles differ, as diff and cmp have it."""
_LONGEST_VALUE = 60
_MOST_LINES = 20


def add_bundle_looks(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bundle show`` and ``bundle diff``, which ``covey`` and ``covey-edge`` share."""
    _add(commands, "show", "what a bundle is", _show).add_argument("bundle", type=Path)
    diff = _add(commands, "diff", "in what two bundles differ", _diff)
    diff.add_argument("bundle", type=Path, metavar="A")
    diff.add_argument("other", type=Path, metavar="B")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    help_text: str,
    run: Callable[[argparse.Namespace], int],
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=help_text, description=run.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    output.add_format(parser)
    parser.set_defaults(run=run)
    return parser


def _show(args: argparse.Namespace) -> int:
    """Show what a bundle is: model, task, graphs, splits, levels, sizes, needs.

    It reads the manifest and decode.json alone, not the other files: bundle verify checks them.

    covey bundle show bundle
    covey bundle show bundle --format json
    """
    from edge_runtime.bundle.folder import open_bundle
    from edge_runtime.bundle.overview import overview

    values = overview(open_bundle(args.bundle))
    output.emit(args, values, _overview_text(args.bundle, values))
    return 0


def _overview_text(path: Path, values: Mapping[str, Any]) -> str:
    model, task, lora = values["model"], values["task"], values["lora"]
    trained = "every weight" if lora is None else f"LoRA r={lora['r']} on {', '.join(lora['targets'])}"
    if behind := values["trained_behind_layers"]:
        trained += f", and the {behind}"
    needs = values["needs"]
    versions = {} if needs is None else needs["runtimes"] | {"tokenizers": needs["tokenizers"]}
    lines = [
        ("bundle", values["bundle_sha256"]),
        (
            "model",
            f"{model['name']} ({model['model_type']}, {model['layers']} layers, {model['parameters']:,} parameters)",
        ),
        ("weights", values["weights_sha256"]),
        ("base", _base(values["base"])),
        ("task", f"{task['kind']}, at most {task['max_tokens']} tokens a row"),
        ("labels", ", ".join(task["labels"]) or "-"),
        ("template", task["template"] or "-"),
        ("trains", f"{trained}: {values['trainable_parameters']:,} parameters"),
        ("splits", _listed(values["splits"])),
        ("decode", _decode_text(values["decode"])),
        ("levels", _levels(values["levels"])),
        ("runtimes", _listed(values["runtimes"])),
        ("needs", ", ".join(f"{name} ≥ {version}" for name, version in versions.items()) or "not known"),
        ("tokenizer", f"{values['tokenizer_sha256']}, the model knows {_known(values['vocab_size'])} tokens"),
        ("made by", ", ".join(f"{name} {version}" for name, version in values["created_by"].items())),
        ("size", f"{_megabytes(values['size_bytes'])} in {values['files']} files: {_sizes(values)}"),
    ]
    head = "\n".join(f"  {name:<10} {value}" for name, value in lines)
    columns = ("kind", "split", "level", "runtime", "MB", "file")
    rows = [
        [*(graph[name] for name in columns[:4]), f"{graph['size_bytes'] / 1e6:.2f}", graph["file"]]
        for graph in values["graphs"]
    ]
    return f"{path}\n{head}\n\n{output.table(columns, rows)}"


def _base(base: Mapping[str, Any] | None) -> str:
    """Return how the base weights are stored, and what that changed."""
    if base is None:
        return "float32"
    from edge_runtime.bundle.base import Base

    return str(Base(**base))


def _decode_text(decode: Mapping[str, Any] | None) -> str:
    if decode is None:
        return "- (text is continued without a cache, if the task continues text)"
    return (
        f"{decode['file']}, {decode['size_bytes'] / 1e6:.2f} MB for {decode['runtime']}, "
        f"{decode['cache_bytes_a_token']:,} bytes of cache a token, {decode['positions']:,} positions"
    )


def _levels(levels: Sequence[Level]) -> str:
    drop, top = ([level for level in levels if kind_of(level) == kind] for kind in ("drop", "top"))
    found = [f"{_listed(drop)} active layers"] if drop else []
    found += (
        [f"the last {_listed([trained_layers(level) for level in top])} of all layers ({_listed(top)})"] if top else []
    )
    return "; ".join(found) or "- (forward-only)"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values)) or "-"


def _known(vocab_size: int | None) -> str:
    return "an unknown number of" if vocab_size is None else f"{vocab_size:,}"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _sizes(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{group} {_megabytes(size)}" for group, size in values["size_bytes_by_group"].items())


def _diff(args: argparse.Namespace) -> int:
    """Show in what two bundles differ: fields of the manifest, and files by what they are for.

    It compares the manifests, which have the hash of each file. Exit code 0: the same; 1: they differ.

    covey bundle diff bundle-old bundle-new
    """
    from edge_runtime.bundle.folder import open_bundle
    from edge_runtime.bundle.overview import differences

    one, other = open_bundle(args.bundle), open_bundle(args.other)
    found = differences(one.manifest, other.manifest)
    same = one.sha256 == other.sha256
    values = {"a": one.sha256, "b": other.sha256, "same": same, "differences": found}
    if same:
        output.emit(args, values, f"{args.bundle} and {args.other} are the same bundle, {one.sha256}")
        return 0
    lines = [f"A  {args.bundle}  {one.sha256}", f"B  {args.other}  {other.sha256}"]
    for group, entries in found.items():
        lines.append(f"{group}:")
        lines += [f"  {_entry(entry)}" for entry in entries[:_MOST_LINES]]
        more = len(entries) - _MOST_LINES
        lines += [f"  … and {more} more; --format json has all"] if more > 0 else []
    if not found:
        lines.append("only the order or the spelling of the manifest differs")
    output.emit(args, values, "\n".join(lines))
    return DIFFERENT


def _entry(entry: Mapping[str, Any]) -> str:
    if "name" in entry:
        return f"{entry['name']}: {_short(entry['a'])} → {_short(entry['b'])}"
    if entry["change"] != "changed":
        return f"{entry['file']}: {entry['change']}"
    sizes = "same size" if entry["a"] == entry["b"] else f"{entry['a']:,} → {entry['b']:,} bytes"
    return f"{entry['file']}: other content ({sizes})"


def _short(value: object) -> str:
    text = "-" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
