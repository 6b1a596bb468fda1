"""Writes a bundle: graphs, weights, adapter, tokenizer, golden vectors, and the manifest last."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import msgspec

from edge_runtime import __version__
from edge_runtime.bundle.behind import hidden_states
from edge_runtime.bundle.folder import Bundle, verify_files
from edge_runtime.bundle.manifest import MANIFEST_FILE, FileEntry, Manifest, Model, format_version_of, output_names
from edge_runtime.bundle.manifest_file import bundle_sha256, encode_manifest
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
from edge_runtime.errors import storage_error
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.hashing import file_sha256
from export.bundle.base_figures import allow_rounding, base_notes, measure_base
from export.bundle.decode_graph import write_decode
from export.bundle.golden import write_golden
from export.bundle.graph_writer import GraphWriter
from export.bundle.least_versions import least_versions
from export.bundle.stack_graphs import StackGraphs
from export.bundle.trainables import WEIGHTS_FILE, choose_trainables
from export.bundle.training_graphs import TrainingGraphs
from export.bundle.weight_table import WeightTable
from export.errors import ExportError
from export.model.blocks import QuantisedBase
from export.model.build import build
from export.model.rebuild import write_rebuild
from export.trace.lift import lift
from export.trace.loss import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import Graph
    from edge_runtime.engines.golden import Parity
    from export.bundle.options import ExportOptions
    from export.bundle.trainables import Trainables
    from export.model.adapter_table import AdapterRow
    from export.model.build import ExportModel
    from export.source.folder import ModelFolder
    from export.trace.lift import Lifted

TOKENIZER_FILE = "tokenizer/tokenizer.json"
GOLDEN_FILE = "golden.safetensors"


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        bundle: the bundle.
        parity: its largest differences from PyTorch on ONNX Runtime.
        notes: what differs from what was asked for, a sentence each.
        adapter: what became of the parts of the folder's adapter; empty where the adapter is new or there is none.
    """

    bundle: Bundle
    parity: Parity
    notes: list[str]
    adapter: list[AdapterRow]


def export_bundle(
    folder: ModelFolder,
    options: ExportOptions,
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _step: None,
) -> Exported:
    """Export a model folder to a bundle.

    Everything is written to a folder beside ``out``, which is renamed to ``out`` once the golden vectors have passed.

    Args:
        folder: the model.
        options: what to make of it.
        out: the bundle's folder.
        force: replace an existing bundle.
        progress: called with a line of text at the start of each step.

    Raises:
        ExportError: the options do not fit the model, or ``out`` exists.
        BundleError: the graphs do not agree with PyTorch.
        StorageError: disk full or not writable.
    """
    options.check_folder(folder)
    _check_out(out, force=force)
    partial = out.with_name(out.name + ".partial")
    try:
        with _storage_errors(out):
            shutil.rmtree(partial, ignore_errors=True)
            for name in ("graphs", "adapter", "tokenizer"):
                (partial / name).mkdir(parents=True)
            exported = _write(folder, options, partial, progress)
            if out.exists():
                shutil.rmtree(out)
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return dataclasses.replace(exported, bundle=dataclasses.replace(exported.bundle, path=out))


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (force and (out / MANIFEST_FILE).is_file())):
        raise ExportError(
            f"{out} exists" + (" and is not a bundle" if force else ""),
            "give another --out" + ("" if force else ", or --force to replace a bundle"),
        )


@contextlib.contextmanager
def _storage_errors(out: Path) -> Iterator[None]:
    """Turn the errors of a full or unwritable disk into StorageError."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, out) from error
    except Exception as error:
        # The libraries that write safetensors and tokenizers have their own exceptions for a full disk.
        if f"(os error {errno.ENOSPC})" in str(error):
            raise storage_error(OSError(errno.ENOSPC, str(error)), out) from error
        raise


def _write(folder: ModelFolder, options: ExportOptions, partial: Path, progress: Callable[[str], None]) -> Exported:
    """Write the whole bundle to ``partial``, and check it against PyTorch."""
    progress("loading the model")
    model = build(folder, options.task, options.lora)
    trainables = choose_trainables(model, options.lora)
    trainables.check(options)
    quantised = _quantise(model, trainables, options)
    progress("tracing")
    lifted = lift(trace(model), options.splits, output_names(model.task.kind))
    parameters, state = trainables.layout(lifted), trainables.state()
    table = WeightTable(trainables.names(), parameters, quantised.blocks if quantised else None)
    graphs = _write_graphs(model, lifted, parameters, table, options, partial, progress)
    if options.stack:
        progress("converting the stack graphs")
        StackGraphs(model, lifted, parameters, state, table).write(options.splits, partial)
    weights = table.close()
    progress("writing weights, adapter and tokenizer")
    trainables.save(parameters, weights, partial)
    if options.base:
        model.rebuild["base"] = options.base.kind
    write_rebuild(model.rebuild, partial / "adapter")
    _save_tokenizer(model, partial)
    golden = write_golden(model, parameters, state, trainables.golden_scale, partial / GOLDEN_FILE, options.levels)
    manifest = Manifest(
        format_version=format_version_of(options.levels, is_quantised=options.base is not None),
        created_by={"covey": __version__, **_versions(options)},
        model=Model(
            name=folder.path.resolve().name,
            model_type=folder.model_type,
            layers=folder.layers,
            parameters=trainables.model_parameters(parameters, weights),
        ),
        task=model.task,
        lora=trainables.describe_lora(parameters),
        splits=options.splits,
        parameters=parameters,
        weights_file=WEIGHTS_FILE,
        adapter_file=trainables.adapter_file,
        tokenizer_file=TOKENIZER_FILE,
        golden=golden,
        graphs=graphs,
        levels=list(options.levels),
        files=_list_files(partial),
        needs=least_versions(partial, graphs, TOKENIZER_FILE, options.base.kind if options.base else None),
    )
    if options.base and options.base.products == "int8":
        manifest = allow_rounding(manifest, partial)
    bundle, parity = _check(manifest, options, partial, progress)
    notes = list(model.notes)
    if quantised and options.base:
        progress("comparing with the weights as they were")
        base = measure_base(bundle, model, state, quantised, options.base)
        notes += base_notes(base)
        manifest = msgspec.structs.replace(manifest, base=base)
    bundle = _seal(manifest, partial)
    return Exported(bundle, parity, notes, model.adapter.rows if model.adapter else [])


def _quantise(model: ExportModel, trainables: Trainables, options: ExportOptions) -> QuantisedBase | None:
    """Quantise the model's frozen weights, where that is asked for."""
    if options.base is None:
        return None
    return QuantisedBase(model.peft_model, options.base.kind, trainables.names().keys())


def _write_graphs(
    model: ExportModel,
    lifted: Lifted,
    parameters: list[Parameter],
    table: WeightTable,
    options: ExportOptions,
    partial: Path,
    progress: Callable[[str], None],
) -> list[Graph]:
    """Write the graphs for every runtime; return what the manifest says about them."""
    progress("converting to ONNX")
    arithmetic = options.base.products if options.base else "float32"
    graphs = GraphWriter(model, lifted, parameters, table, arithmetic).write(options.splits, partial)
    if options.has_decode:
        progress("tracing and converting the decode graph")
        write_decode(model, table, partial)
    if options.levels:
        progress("tracing and converting the training graphs")
        training = TrainingGraphs(model, parameters, table)
        graphs += [
            training.write(level, partial, recompute=options.recompute, rescale=options.rescale)
            for level in options.levels
        ]
        if arithmetic == "float32":  # a front that rounds activations is not what a training graph begins behind
            states = hidden_states(graphs, options.splits)
            training.write_behind(options.levels, states, partial, recompute=options.recompute)
    if options.for_executorch:
        from export.bundle import executorch_graphs, lowering  # noqa: PLC0415 executorch is an extra of the package

        progress("lowering for ExecuTorch")
        target = lowering.Lowering(partial, options.max_batch, progress)
        graphs += executorch_graphs.write_executorch(model, lifted, graphs, table, target)
    return graphs


def _save_tokenizer(model: ExportModel, partial: Path) -> None:
    model.tokenizer.save_pretrained(partial / "tokenizer")
    if not (partial / TOKENIZER_FILE).is_file():
        raise ExportError("the tokenizer has no tokenizer.json", "put tokenizer.json beside the model")


def _check(
    manifest: Manifest, options: ExportOptions, partial: Path, progress: Callable[[str], None]
) -> tuple[Bundle, Parity]:
    """Check the golden vectors on every runtime, before there is a manifest."""
    bundle = Bundle(partial, manifest, bundle_sha256(encode_manifest(manifest)))
    progress("checking parity with PyTorch")
    parity = check_golden(bundle)
    if options.for_executorch:
        progress("checking parity of ExecuTorch with PyTorch")
        check_golden(bundle, Engines("executorch"))
    return bundle, parity


def _seal(manifest: Manifest, partial: Path) -> Bundle:
    """Write the manifest."""
    data = encode_manifest(manifest)
    bundle = Bundle(partial, manifest, bundle_sha256(data))
    write_atomically(partial / MANIFEST_FILE, data)
    verify_files(bundle)
    return bundle


def _list_files(folder: Path) -> list[FileEntry]:
    return [
        FileEntry(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _versions(options: ExportOptions) -> dict[str, str]:
    names = ["torch", "transformers", "peft", "onnx", "onnxscript"]
    names += ["executorch"] if options.for_executorch else []
    return {name: metadata.version(name) for name in names}
