"""``covey-edge bundle verify`` and ``covey bundle verify``: check a bundle's hashes, layout and golden vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime import output
from edge_runtime.commands.bundle_show import add_bundle_looks

if TYPE_CHECKING:
    import argparse

    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.bundle.needs import Needs


def add_bundle_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bundle verify``, ``show`` and ``diff``, which ``covey`` and ``covey-edge`` share."""
    bundle = commands.add_parser("bundle", help="look at bundles").add_subparsers(required=True, metavar="COMMAND")
    verify = bundle.add_parser("verify", help="check a bundle", description=_bundle_verify.__doc__)
    verify.add_argument("bundle", type=Path)
    verify.add_argument(
        "--threads", type=int, default=0, help="threads of one operator (default: as many as may run at once)"
    )
    add_engine_option(verify, "onnxruntime")
    output.add_format(verify)
    verify.set_defaults(run=_bundle_verify)
    add_bundle_looks(bundle)


def add_engine_option(parser: argparse.ArgumentParser, default: Runtime | None) -> None:
    """Give a command ``--engine``; without a default it takes the configured one."""
    parser.add_argument(
        "--engine",
        choices=("onnxruntime", "executorch"),
        default=default,
        help=f"what runs the graphs (default: {default or 'the configured one'})",
    )


def _bundle_verify(args: argparse.Namespace) -> int:
    """Check hashes of all files, the layout, the tokenizer, and the golden vectors against what PyTorch gave."""
    from edge_runtime.bundle.decode import Decode
    from edge_runtime.bundle.folder import open_bundle, verify_files
    from edge_runtime.data.tokens import load_tokenizer
    from edge_runtime.data.vocabulary import check_vocabulary
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.least_versions import check_versions
    from edge_runtime.engines.trial import try_bundle
    from edge_runtime.perturbation.kernel import kernel_name, kernel_reason

    bundle = open_bundle(args.bundle)
    verify_files(bundle)
    manifest = bundle.manifest
    check_versions(manifest, args.engine)
    tokenizer = load_tokenizer(bundle.file(manifest.tokenizer_file))
    check_vocabulary(tokenizer, manifest.task, manifest.vocab_size)
    engines = Engines(args.engine, args.threads)
    parity = try_bundle(args.bundle, engines)
    has_decode = isinstance(engines.find_decode(bundle), Decode)
    result = {
        "bundle_sha256": bundle.sha256,
        "files": len(manifest.files),
        "size_bytes": sum(entry.size_bytes for entry in manifest.files),
        "splits": manifest.splits,
        "trainable_parameters": manifest.parameters[-1].stop,
        "vocab_size": manifest.vocab_size,
        "runtimes": manifest.runtimes,
        "needs": None if manifest.needs is None else msgspec.to_builtins(manifest.needs),
        "engine": args.engine,
        "parity_loss": parity.loss,
        "parity_logits": parity.logits,
        "parity_decode": parity.decode if has_decode else None,
        "kernel": kernel_name(),
    }
    decoded = f" (with a cache {parity.decode:.1e})" if has_decode else ""
    known = manifest.vocab_size
    of_model = "the bundle is too old to say how many the model knows" if known is None else f"the model knows {known}"
    text = (
        f"{args.bundle}: good\n"
        f"  bundle     {bundle.sha256}\n"
        f"  model      {manifest.model.name} ({manifest.model.model_type}, {manifest.model.layers} layers)\n"
        f"  files      {len(manifest.files)}, {sum(e.size_bytes for e in manifest.files) / 1e6:.1f} MB, hashes match\n"
        f"  layout     {manifest.parameters[-1].stop} trainable parameters, splits {manifest.splits}\n"
        f"  tokenizer  {tokenizer.get_vocab_size()} tokens, {of_model}\n"
        f"  needs      {_needs_text(manifest.needs)}\n"
        f"  parity     loss within {parity.loss:.1e}, logits within {parity.logits:.1e}{decoded} of PyTorch, "
        f"on {args.engine}\n"
        f"  kernel     {kernel_name()}: {kernel_reason()}"
    )
    output.emit(args, result, text)
    return 0


def _needs_text(needs: Needs | None) -> str:
    if needs is None:
        return "the bundle is too old to say which versions of the runtime and of tokenizers it needs"
    versions = [*needs.runtimes.items(), ("tokenizers", needs.tokenizers)]
    return f"{', '.join(f'{name} ≥ {version}' for name, version in versions)} ({needs.of_graphs})"
