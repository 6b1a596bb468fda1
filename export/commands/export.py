"""``covey export``: make a bundle from a Hugging Face folder."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime import output
from edge_runtime.bundle.levels import listed
from edge_runtime.bundle.overview import decode_overview
from edge_runtime.errors import ConfigError
from export.commands.lists import levels, names, numbers
from export.errors import AdapterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from export.bundle.bundle_writer import Exported
    from export.bundle.options import ExportOptions
    from export.source.folder import ModelFolder


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``export``."""
    parser = commands.add_parser("export", help="make a bundle from a Hugging Face folder", description=_export.__doc__)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="local model folder, or one with an adapter")
    _add_task_options(parser)
    _add_graph_options(parser)
    _add_training_options(parser)
    _add_base_options(parser)
    _add_head_options(parser)
    _add_runtime_options(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of a new adapter (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    output.add_format(parser)
    parser.set_defaults(run=_export)


def _add_task_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", required=True, choices=("classify-head", "classify-prompt", "causal-lm"))
    parser.add_argument("--labels", help="names of the labels, separated by commas; not for causal-lm")
    parser.add_argument(
        "--template", help="prompt with {text} in it, e.g. '{text} It was'; for a masked model also with {mask}"
    )
    parser.add_argument(
        "--label-words", help="one word per label, separated by commas; spaces count: ' terrible, great'"
    )


def _add_graph_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--split",
        help="layers at which the back block begins, e.g. 5 or 3,4,5; with the number of layers it is the head alone "
        "or the final norm (default: that for classify-head and classify-prompt, two thirds of the layers where "
        "neither head nor norm is trained alone; and below each top level)",
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        type=_not_a_folder,
        metavar="LEVELS",
        help="training graphs for devices that backpropagate: shares of active layers, e.g. 1.0,0.5 or drop:1.0,0.5; "
        "and numbers of layers that are trained while all run, e.g. top:6,3,1 (default: none)",
    )
    parser.add_argument(
        "--checkpoint",
        dest="recompute",
        action="store_true",
        help="training graphs compute layers again instead of keeping their activations: less memory, more time",
    )
    parser.add_argument(
        "--rescale",
        action="store_true",
        help="training graphs take a factor on what each layer adds to its input, for jobs with rescale = true",
    )
    parser.add_argument(
        "--decode",
        action=argparse.BooleanOptionalAction,
        help="causal-lm: a graph with which devices continue prompts with a cache of keys and values; --no-decode "
        "saves its file and the time to trace it (default: for causal-lm)",
    )
    parser.add_argument(
        "--stack",
        action="store_true",
        help="graphs with which devices measure many directions in one call, where their profile says that it is "
        "faster; not for causal-lm, a quantised base or --train full (default: none)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=128, help="longer rows are cut to this many tokens (default: %(default)s)"
    )


def _not_a_folder(text: str) -> str:
    """Return a list of levels: without this check, --levels would take a model's folder that follows it for one."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: MODEL_DIR stands before --levels")
    return text


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--train",
        choices=("lora", "full"),
        default="lora",
        help="train LoRA matrices and a head, or every weight (default: %(default)s)",
    )
    parser.add_argument("--lora-r", type=int, default=8, help="rank (default: %(default)s)")
    parser.add_argument(
        "--lora-alpha", type=float, default=16.0, help="scale, which is divided by the rank (default: %(default)s)"
    )
    parser.add_argument(
        "--lora-targets", help="modules, separated by commas (default: the query and value projections)"
    )
    parser.add_argument(
        "--lora-init",
        nargs=2,
        metavar=("activations", "FILE"),
        help="a new adapter's A starts from the model's activations over these public rows (default: at random)",
    )
    parser.add_argument("--lora-layers", help="layers with LoRA, e.g. 4,5 (default: all)")
    parser.add_argument(
        "--lora-train",
        choices=("B", "AB"),
        default="B",
        help="matrices to train; B alone has half the noise and averages exactly (default: %(default)s)",
    )
    parser.add_argument(
        "--train-norm",
        action=argparse.BooleanOptionalAction,
        help="also train the final norm, whose output the label words or tokens are compared with; with the number of "
        "layers as --split it is trained alone; for classify-prompt and causal-lm (default: for classify-prompt with a "
        "new adapter and neither --split nor --levels)",
    )


def _add_base_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        choices=("float32", "int8", "int4"),
        default="float32",
        help="store the layers' frozen weights in blocks of small integers: less memory; adapter, head, norms and "
        "embeddings stay float32 (default: %(default)s)",
    )
    parser.add_argument(
        "--base-products",
        choices=("float32", "int8"),
        help="what products with a quantised base are computed in; int8 rounds activations too: faster where the "
        "processor has int8 dot products (default: float32)",
    )
    parser.add_argument(
        "--base-rows",
        type=Path,
        metavar="FILE",
        help="labelled rows on which the quantised model is compared with the weights as they were (default: golden "
        "rows of random tokens)",
    )


def _add_head_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last"), help="how a new head turns tokens into one vector"
    )
    parser.add_argument("--logit-scale", type=float, help="factor on a new head's logits (default: 1)")
    parser.add_argument(
        "--head-init", type=Path, metavar="FILE", help="labelled rows: a new head starts at their class means"
    )


def _add_runtime_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--runtime",
        choices=("onnx", "onnx,executorch"),
        default="onnx",
        help="runtimes of the devices; ONNX Runtime is always one, because the server needs it (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch", type=int, default=32, help="ExecuTorch: largest number of rows per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--ptd",
        type=Path,
        metavar="FILE",
        help="also write the weights in ExecuTorch's own file format, for apps that read it; not part of the bundle",
    )


def _export(args: argparse.Namespace) -> int:
    """Make a bundle: ONNX graphs with weights as inputs, weights, adapter, tokenizer, golden vectors, manifest."""
    started = time.monotonic()
    _check_flags(args)
    try:
        from export.bundle.bundle_writer import export_bundle
        from export.source.folder import look_at

        if "executorch" in args.runtime:
            import export.graphs.executorch_pieces  # noqa: F401 fails now, not after minutes
    except ImportError as error:
        extras = "export,executorch" if "executorch" in args.runtime else "export"
        raise ConfigError(f"the exporter is not installed ({error})", f"pip install 'covey[{extras}]'") from error

    def progress(step: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {step}", file=sys.stderr)

    folder = look_at(args.model_dir)
    try:
        exported = export_bundle(folder, _options(args, folder), args.out, force=args.force, progress=progress)
    except AdapterError as error:
        if args.format == "text":
            print(_adapter_table(error.table), file=sys.stderr)
        raise
    if args.ptd:
        from export.bundle.flat_tensors import write_flat_tensors

        progress(f"writing {args.ptd}")
        write_flat_tensors(exported.bundle, args.ptd)
    output.emit(args, _result(args, exported, time.monotonic() - started), _text(args, exported))
    return 0


def _check_flags(args: argparse.Namespace) -> None:
    """Check the flags against each other before anything slow is imported.

    Raises:
        ConfigError: a flag has no effect without another one, or a list is malformed.
    """
    for flag, given in (("--checkpoint", args.recompute), ("--rescale", args.rescale)):
        if given and not args.levels:
            raise ConfigError(f"{flag} is about training graphs", "give --levels too, as in --levels 1.0,0.5")
    if args.rescale and "executorch" in args.runtime:
        raise ConfigError("--rescale is for ONNX Runtime's training graphs", "leave out --rescale, or executorch")
    for flag, given in (("--base-products", args.base_products), ("--base-rows", args.base_rows)):
        if given and args.base == "float32":
            raise ConfigError(f"{flag} is about a quantised base", "give --base int8 or --base int4 too")
    if args.ptd and "executorch" not in args.runtime:
        raise ConfigError("--ptd is about ExecuTorch", "give --runtime onnx,executorch too")
    if args.lora_init and args.lora_init[0] != "activations":
        raise ConfigError(f"--lora-init {args.lora_init[0]!r}: unknown", "as in --lora-init activations rows.jsonl")
    if args.lora_init and args.train == "full":
        raise ConfigError("--lora-init is about LoRA, and --train full has none", "leave one of them out")
    if args.train_norm and args.train == "full":
        raise ConfigError("--train full trains the final norm as every weight", "leave out --train-norm")
    numbers("--split", args.split or "1")
    numbers("--lora-layers", args.lora_layers or "0")
    levels("--levels", args.levels or ["1.0"])


def _options(args: argparse.Namespace, folder: ModelFolder) -> ExportOptions:
    """Return the options that the flags ask for."""
    from export.bundle.level_checks import default_splits, levels_of, trains_norm_alone
    from export.bundle.options import ExportOptions
    from export.model.lora import DEFAULT_TARGETS
    from export.model.options import BaseOptions, LoraOptions, TaskOptions

    task = TaskOptions(
        kind=args.task,
        labels=names(args.labels) if args.labels else [],
        template=args.template,
        label_words=args.label_words.split(",") if args.label_words else None,
        max_tokens=args.max_tokens,
        pooling=args.pooling,
        logit_scale=args.logit_scale,
        head_init=args.head_init,
    )
    alone = args.train_norm is not False and not (args.split or args.levels or args.stack or args.train == "full")
    alone = alone and trains_norm_alone(args.task, folder)
    lora = LoraOptions(
        r=args.lora_r,
        alpha=args.lora_alpha,
        targets=names(args.lora_targets) if args.lora_targets else DEFAULT_TARGETS[folder.model_type],
        layers=numbers("--lora-layers", args.lora_layers) if args.lora_layers else None,
        trained=list(args.lora_train),
        seed=args.seed,
        activations=Path(args.lora_init[1]) if args.lora_init else None,
        norm=alone if args.train_norm is None else args.train_norm,
    )
    shares, tops = levels("--levels", args.levels) if args.levels else ([], [])
    split = (
        numbers("--split", args.split)
        if args.split
        else default_splits(args.task, tops, folder.layers, norm_alone=alone)
    )
    return ExportOptions(
        task,
        lora if args.train == "lora" else None,
        splits=sorted(set(split)),
        runtimes=["onnxruntime", "executorch"] if "executorch" in args.runtime else ["onnxruntime"],
        max_batch=args.max_batch,
        levels=levels_of(shares, tops, folder.layers) if args.levels else [],
        recompute=args.recompute,
        rescale=args.rescale,
        decode=args.decode,
        stack=args.stack,
        base=None
        if args.base == "float32"
        else BaseOptions(args.base, args.base_products or "float32", args.base_rows),
    )


def _result(args: argparse.Namespace, exported: Exported, wall_s: float) -> dict[str, Any]:
    """Return what ``--format json`` prints."""
    manifest, parity = exported.bundle.manifest, exported.parity
    return {
        "bundle": str(args.out),
        "bundle_sha256": exported.bundle.sha256,
        "size_bytes": _size_bytes(exported),
        "trainable_parameters": manifest.parameters[-1].stop,
        "splits": manifest.splits,
        "levels": manifest.levels,
        "max_tokens": manifest.task.max_tokens,
        "notes": exported.notes,
        "adapter": [dataclasses.asdict(row) for row in exported.adapter],
        "runtimes": manifest.runtimes,
        "ptd": None if args.ptd is None else str(args.ptd),
        "parity_loss": parity.loss,
        "parity_logits": parity.logits,
        "parity_gradients": parity.gradients if manifest.levels else None,
        "decode": decode_overview(exported.bundle),
        "parity_decode": None if decode_overview(exported.bundle) is None else parity.decode,
        "base": None if manifest.base is None else msgspec.to_builtins(manifest.base),
        "wall_s": round(wall_s, 1),
    }


def _text(args: argparse.Namespace, exported: Exported) -> str:
    """Return what ``--format text`` prints."""
    manifest, parity = exported.bundle.manifest, exported.parity
    text = (
        f"{args.out}: bundle {exported.bundle.sha256[:12]}, {_size_bytes(exported) / 1e6:.1f} MB, "
        f"{manifest.parameters[-1].stop} trainable parameters, splits {manifest.splits}; "
        f"loss within {parity.loss:.1e} and logits within {parity.logits:.1e} of PyTorch"
    )
    if manifest.levels:
        text += f"; levels [{listed(manifest.levels)}] of {manifest.model.layers} layers"
        text += f", gradients within {parity.gradients:.1e}"
    decode = decode_overview(exported.bundle)
    if decode is not None:
        text += (
            f"; decode graph {decode['size_bytes'] / 1e6:.2f} MB, {decode['cache_bytes_a_token']} bytes of cache a "
            f"token, losses within {parity.decode:.1e}"
        )
    text = "\n  ".join([text, *(f"note: {note}" for note in exported.notes)])
    if exported.adapter:
        text = f"{_adapter_table([dataclasses.asdict(row) for row in exported.adapter])}\n{text}"
    return text


def _adapter_table(rows: Sequence[dict[str, object]]) -> str:
    """Return the table of what becomes of an adapter's parts."""
    columns = ("part of the adapter", "tensors", "parameters", "is", "because")
    fields = ("part", "tensors", "parameters", "fate", "why")
    return output.table(columns, [[row[field] for field in fields] for row in rows])


def _size_bytes(exported: Exported) -> int:
    return sum(entry.size_bytes for entry in exported.bundle.manifest.files)
