"""``covey export``. torch and transformers are imported when the command runs, not before."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from edge_runtime import output
from edge_runtime.errors import ConfigError

Commands = argparse._SubParsersAction


def add_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``export`` and ``probe``."""
    parser = commands.add_parser("export", help="make a bundle from a Hugging Face folder", description=_export.__doc__)
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="local model folder, or one with an adapter")
    parser.add_argument("--task", required=True, choices=("classify-head", "classify-prompt", "causal-lm"))
    parser.add_argument("--labels", help="names of the labels, separated by commas; causal-lm has none")
    parser.add_argument(
        "--template", help="prompt with {text} in it, e.g. '{text} It was'; a masked model's also with {mask}"
    )
    parser.add_argument("--label-words", help="one word a label, separated by commas, spaces count: ' terrible, great'")
    parser.add_argument(
        "--split",
        required=True,
        help="layers at which the back block begins, e.g. 5 or 3,4,5; the number of layers: the head alone",
    )
    parser.add_argument(
        "--levels",
        help="training graphs, for devices that backpropagate: shares of active layers, e.g. 1.0,0.5 (default: none)",
    )
    parser.add_argument(
        "--checkpoint",
        action="store_true",
        help="training graphs compute layers again instead of keeping their activations: less memory, more time",
    )
    parser.add_argument(
        "--rescale",
        action="store_true",
        help="training graphs take a factor on what each layer adds to its input, for jobs with rescale = true",
    )
    parser.add_argument("--max-tokens", type=int, default=128, help="longer rows are cut (default: %(default)s)")
    parser.add_argument(
        "--train",
        choices=("lora", "full"),
        default="lora",
        help="LoRA matrices and a head, or every weight (default: %(default)s)",
    )
    parser.add_argument("--lora-r", type=int, default=8, help="rank (default: %(default)s)")
    parser.add_argument("--lora-alpha", type=float, default=16.0, help="scale, over the rank (default: %(default)s)")
    parser.add_argument(
        "--lora-targets", help="modules, separated by commas (default: the query and value projections)"
    )
    parser.add_argument("--lora-layers", help="layers with LoRA, e.g. 4,5 (default: all)")
    parser.add_argument(
        "--lora-train",
        choices=("B", "AB"),
        default="B",
        help="which matrices are trained; B alone has half the noise and averages exactly (default: %(default)s)",
    )
    parser.add_argument(
        "--pooling", choices=("mean", "cls", "last"), help="how tokens become one vector, for a new head"
    )
    parser.add_argument("--logit-scale", type=float, help="factor on a new head's logits (default: 1)")
    parser.add_argument("--head-init", type=Path, metavar="FILE", help="labelled rows: the head starts at class means")
    parser.add_argument(
        "--runtime",
        choices=("onnx", "onnx,executorch"),
        default="onnx",
        help="what runs the graphs on the devices; ONNX Runtime is always one, the server needs it "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch", type=int, default=32, help="ExecuTorch: most rows of a batch (default: %(default)s)"
    )
    parser.add_argument(
        "--ptd",
        type=Path,
        metavar="FILE",
        help="write the weights as ExecuTorch's own file too, for apps that read it; it is no part of the bundle",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the new adapter (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder")
    parser.add_argument("--force", action="store_true", help="replace a bundle that is there")
    output.add_format(parser)
    parser.set_defaults(run=_export)
    _add_probe(commands)


def _add_probe(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "probe", help="how far a frozen model gets on labelled rows", description=_probe.__doc__
    )
    parser.add_argument("model_dir", type=Path, metavar="MODEL_DIR", help="local model folder")
    parser.add_argument("--labels", required=True, help="names of the labels, separated by commas")
    parser.add_argument("--train", type=Path, required=True, metavar="FILE", help="training rows (.jsonl or .csv)")
    parser.add_argument("--test", type=Path, required=True, metavar="FILE", help="held-out rows")
    parser.add_argument("--max-tokens", type=int, default=128, help="longer rows are cut (default: %(default)s)")
    output.add_format(parser)
    parser.set_defaults(run=_probe)


def _probe(args: argparse.Namespace) -> int:
    """Fit a linear probe on the frozen model's features: the baseline that fine-tuning has to beat."""
    try:
        from export.probe import linear_probe
        from export.source.folder import look_at
    except ImportError as error:
        raise ConfigError(f"the exporter is not installed ({error})", "pip install 'covey[export]'") from error
    result = linear_probe(look_at(args.model_dir), _names(args.labels), args.train, args.test, args.max_tokens)
    values = {"loss": result.loss, "accuracy": result.accuracy, "train_rows": result.train_rows}
    text = f"linear probe on {result.train_rows} rows: loss {result.loss:.4f}, accuracy {result.accuracy:.3f}"
    output.emit(args, values, text)
    return 0


def _export(args: argparse.Namespace) -> int:
    """Make a bundle: ONNX graphs with weights as inputs, weights, adapter, tokenizer, golden vectors, manifest."""
    started = time.monotonic()
    labels = _names(args.labels) if args.labels else []
    splits = sorted(set(_numbers("--split", args.split)))
    layers = _numbers("--lora-layers", args.lora_layers) if args.lora_layers else None
    shares = _shares("--levels", args.levels) if args.levels else []
    for flag in ("checkpoint", "rescale"):
        if getattr(args, flag) and not shares:
            raise ConfigError(f"--{flag} is about training graphs", "give --levels too, as in: 1.0,0.5")
    if args.rescale and "executorch" in args.runtime:
        raise ConfigError("--rescale is for ONNX Runtime's training graphs", "leave it or --runtime executorch out")
    if args.ptd and "executorch" not in args.runtime:
        raise ConfigError("--ptd is about ExecuTorch", "give --runtime onnx,executorch too")
    try:
        from export.bundle.bundle_writer import export_bundle
        from export.bundle.level_checks import level_counts
        from export.model.lora import DEFAULT_TARGETS
        from export.model.options import LoraOptions, TaskOptions
        from export.source.folder import look_at

        if "executorch" in args.runtime:
            import export.graphs.executorch_pieces  # noqa: F401 said now, not after minutes
    except ImportError as error:
        extras = "export,executorch" if "executorch" in args.runtime else "export"
        raise ConfigError(f"the exporter is not installed ({error})", f"pip install 'covey[{extras}]'") from error

    def progress(step: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {step}", file=sys.stderr)

    folder = look_at(args.model_dir)
    options = TaskOptions(
        kind=args.task,
        labels=labels,
        template=args.template,
        label_words=args.label_words.split(",") if args.label_words else None,
        max_tokens=args.max_tokens,
        pooling=args.pooling,
        logit_scale=args.logit_scale,
        head_init=args.head_init,
    )
    lora_options = LoraOptions(
        r=args.lora_r,
        alpha=args.lora_alpha,
        targets=_names(args.lora_targets) if args.lora_targets else DEFAULT_TARGETS[folder.model_type],
        layers=layers,
        trained=list(args.lora_train),
        seed=args.seed,
    )
    trained = lora_options if args.train == "lora" else None
    exported = export_bundle(
        folder,
        options,
        trained,
        splits,
        args.out,
        levels=level_counts(shares, folder.layers),
        recompute=args.checkpoint,
        rescale=args.rescale,
        runtimes=["onnxruntime", "executorch"] if "executorch" in args.runtime else ["onnxruntime"],
        max_batch=args.max_batch,
        force=args.force,
        progress=progress,
    )
    if args.ptd:
        from export.bundle.flat_tensors import write_flat_tensors

        progress(f"writing {args.ptd}")
        write_flat_tensors(exported.bundle, args.ptd)
    manifest, parity = exported.bundle.manifest, exported.parity
    result = {
        "bundle": str(args.out),
        "bundle_sha256": exported.bundle.sha256,
        "size_bytes": sum(entry.size_bytes for entry in manifest.files),
        "trainable_parameters": manifest.parameters[-1].stop,
        "splits": manifest.splits,
        "levels": manifest.levels,
        "runtimes": manifest.runtimes,
        "ptd": None if args.ptd is None else str(args.ptd),
        "parity_loss": parity.loss,
        "parity_logits": parity.logits,
        "parity_gradients": parity.gradients if manifest.levels else None,
        "wall_s": round(time.monotonic() - started, 1),
    }
    text = (
        f"{args.out}: bundle {exported.bundle.sha256[:12]}, {result['size_bytes'] / 1e6:.1f} MB, "  # type: ignore[operator]
        f"{manifest.parameters[-1].stop} trainable parameters, splits {manifest.splits}; "
        f"loss within {parity.loss:.1e} and logits within {parity.logits:.1e} of PyTorch"
    )
    if manifest.levels:
        text += f"; levels {manifest.levels} of {manifest.model.layers} layers, gradients within {parity.gradients:.1e}"
    output.emit(args, result, text)
    return 0


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _numbers(flag: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not a list of numbers", "write numbers with commas: 3,4,5") from error


def _shares(flag: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{flag} {text!r} is not a list of shares", "write shares with commas: 1.0,0.5") from error
