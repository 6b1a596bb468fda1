"""Writes a bundle: graphs, weights, adapter, tokenizer, golden vectors, and the manifest last."""

from __future__ import annotations

import errno
import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from edge_runtime import __version__
from edge_runtime.bundle.folder import Bundle, verify_files
from edge_runtime.bundle.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    FileEntry,
    Lora,
    Manifest,
    Model,
    output_names,
)
from edge_runtime.bundle.manifest_file import bundle_sha256, encode_manifest
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import check_golden
from edge_runtime.errors import storage_error
from edge_runtime.files.atomic import write_atomically
from edge_runtime.files.hashing import file_sha256
from export.bundle.golden import _write_golden
from export.bundle.graph_writer import GraphWriter
from export.bundle.level_checks import check_alike
from export.bundle.training_graphs import TrainingGraphs
from export.errors import ExportError
from export.model import full, lora
from export.model.build import build
from export.model.rebuild import write_rebuild
from export.trace.batches import MAX_BATCH
from export.trace.full_layout import make_layout as make_full_layout
from export.trace.lift import lift
from export.trace.loss import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from edge_runtime.bundle.layout import Parameter
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.engines.golden import Parity
    from export.model.build import ExportModel
    from export.model.options import LoraOptions, TaskOptions
    from export.source.folder import ModelFolder

WEIGHTS_FILE = "weights.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
TOKENIZER_FILE = "tokenizer/tokenizer.json"
GOLDEN_FILE = "golden.safetensors"
MAX_BATCH_EXECUTORCH = 32
SMALLEST_MAX_BATCH = 16
"""Predictions are made for so many rows at once."""
_GOLDEN_SCALE = 0.02
"""Large enough that a LoRA left out, on a head that starts at zero, differs by far more than the tolerance."""
_GOLDEN_SCALE_FULL = 1e-3
"""Every weight moves: more would turn the model into noise."""


@dataclass(frozen=True)
class Exported:
    """What an export gave."""

    bundle: Bundle
    parity: Parity


def export_bundle(
    folder: ModelFolder,
    options: TaskOptions,
    lora_options: LoraOptions | None,
    splits: list[int],
    out: Path,
    *,
    runtimes: Sequence[Runtime] = ("onnxruntime",),
    max_batch: int = MAX_BATCH_EXECUTORCH,
    levels: Sequence[int] = (),
    recompute: bool = False,
    rescale: bool = False,
    force: bool = False,
    progress: Callable[[str], None] = lambda _step: None,
) -> Exported:
    """Export a model folder to a bundle.

    Everything is written beside ``out`` and appears there by a rename, after the golden vectors have passed.

    Args:
        folder: the model.
        options: the task.
        lora_options: the adapter; what is in it is not used where the folder has one. None trains every weight.
        splits: layer indexes to cut at.
        out: the bundle's folder.
        runtimes: what runs the graphs; always ONNX Runtime, with which the server evaluates.
        max_batch: most rows of a batch on ExecuTorch.
        levels: numbers of active layers to write training graphs for.
        recompute: whether training graphs compute layers again instead of keeping their activations.
        rescale: whether training graphs take a factor on what each layer adds to its input.
        force: replace a bundle that is there.
        progress: told what is being done.

    Raises:
        ExportError: something does not fit, or the graphs do not agree with PyTorch.
        StorageError: disk full or not writable.
    """
    for split in splits:
        if not 1 <= split <= folder.layers:
            raise ExportError(
                f"--split {split} is out of range: the model has {folder.layers} layers",
                f"choose from 1 to {folder.layers}: the layer at which the back block begins",
            )
    if levels and lora_options is None:
        raise ExportError(
            "--levels: with --train full a gradient would be as large as the model",
            "train LoRA, or leave out --levels: every weight is trained with forward passes alone",
        )
    if not SMALLEST_MAX_BATCH <= max_batch <= MAX_BATCH:
        raise ExportError(
            f"--max-batch {max_batch} is out of range", f"choose from {SMALLEST_MAX_BATCH} to {MAX_BATCH}"
        )
    _check_out(out, force=force)
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("graphs", "adapter", "tokenizer"):
            (partial / name).mkdir(parents=True)
        exported = _write(
            folder,
            options,
            lora_options,
            splits,
            partial,
            runtimes,
            max_batch,
            progress,
            levels,
            recompute=recompute,
            rescale=rescale,
        )
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    except OSError as error:
        raise storage_error(error, out) from error
    except Exception as error:
        # The libraries that write safetensors and tokenizers have exceptions of their own for a full disk.
        if f"(os error {errno.ENOSPC})" in str(error):
            raise storage_error(OSError(errno.ENOSPC, str(error)), out) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Exported(Bundle(out, exported.bundle.manifest, exported.bundle.sha256), exported.parity)


def _check_out(out: Path, *, force: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (force and (out / MANIFEST_FILE).is_file())):
        raise ExportError(
            f"{out} exists" + (" and is not a bundle" if force else ""),
            "give another --out" + ("" if force else ", or --force to replace a bundle"),
        )


def _write(
    folder: ModelFolder,
    options: TaskOptions,
    lora_options: LoraOptions | None,
    splits: list[int],
    partial: Path,
    runtimes: Sequence[Runtime],
    max_batch: int,
    progress: Callable[[str], None],
    levels: Sequence[int],
    *,
    recompute: bool,
    rescale: bool,
) -> Exported:
    progress("loading the model")
    model = build(folder, options, lora_options)
    parameters = []
    if lora_options is not None:
        parameters = lora.make_layout(model.peft_model, folder, lora_options.trained)
        _check_trained(folder, parameters, splits, levels)
    progress("tracing")
    program = trace(model, folder)
    lifted = lift(program, splits, output_names(model.task.kind))
    if lora_options is None:
        parameters = make_full_layout(model.peft_model, program, lifted, folder)
        names, state = full.parameter_names(model.peft_model), full.parameter_state(model.peft_model)
    else:
        names, state = lora.adapter_names(model.peft_model), lora.adapter_state(model.peft_model)
    progress("converting to ONNX")
    writer = GraphWriter(model, folder, program, lifted, parameters, names)
    graphs = writer.write(splits, partial)
    addresses = {state[parameter.name].data_ptr() for parameter in parameters}
    if levels:
        progress("tracing and converting the training graphs")
        training = TrainingGraphs(model, folder, parameters, addresses, writer)
        graphs += [training.write(level, partial, recompute=recompute, rescale=rescale) for level in levels]
    if "executorch" in runtimes:
        graphs += _lower(writer, graphs, model, folder, addresses, levels, partial, max_batch, progress)
    progress("writing weights, adapter and tokenizer")
    if lora_options is None:
        full.write_flat(partial / WEIGHTS_FILE, parameters, state)
        full.save_config(model.peft_model, partial / "adapter")
    else:
        writer.write_weights(partial / WEIGHTS_FILE)
        lora.save_adapter(model.peft_model, partial / "adapter")
    write_rebuild(model.rebuild, partial / "adapter")
    model.tokenizer.save_pretrained(partial / "tokenizer")
    if not (partial / TOKENIZER_FILE).is_file():
        raise ExportError("the tokenizer has no tokenizer.json", "put one beside the model")
    scale = _GOLDEN_SCALE if lora_options is not None else _GOLDEN_SCALE_FULL
    golden = _write_golden(model, folder, parameters, state, scale, partial / GOLDEN_FILE, levels)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_by={"covey": __version__, **_versions(runtimes)},
        model=Model(
            name=folder.path.resolve().name,
            model_type=folder.model_type,
            layers=folder.layers,
            parameters=writer.weight_count if lora_options is not None else parameters[-1].stop,
        ),
        task=model.task,
        lora=None if lora_options is None else _describe_lora(model, parameters, lora_options),
        splits=splits,
        parameters=parameters,
        weights_file=WEIGHTS_FILE,
        adapter_file=ADAPTER_FILE if lora_options is not None else WEIGHTS_FILE,
        tokenizer_file=TOKENIZER_FILE,
        golden=golden,
        graphs=graphs,
        levels=list(levels),
        files=_list_files(partial),
    )
    data = encode_manifest(manifest)
    bundle = Bundle(partial, manifest, bundle_sha256(data))
    progress("checking parity with PyTorch")
    parity = check_golden(bundle)
    if "executorch" in runtimes:
        progress("checking parity of ExecuTorch with PyTorch")
        check_golden(bundle, Engines("executorch"))
    write_atomically(partial / MANIFEST_FILE, data)
    verify_files(bundle)
    return Exported(bundle, parity)


def _lower(
    writer: GraphWriter,
    graphs: list[Graph],
    model: ExportModel,
    folder: ModelFolder,
    addresses: set[int],
    levels: Sequence[int],
    partial: Path,
    max_batch: int,
    progress: Callable[[str], None],
) -> list[Graph]:
    """Write for ExecuTorch what has been written for ONNX Runtime; return what the manifest says about it."""
    progress("lowering for ExecuTorch")
    forward = [graph for graph in graphs if graph.kind != "train"]
    made = writer.write_executorch(forward, partial, max_batch, progress)
    if levels:
        from export.bundle.executorch_training import write_training  # noqa: PLC0415 an extra of its own

        made += [
            write_training(model, folder, addresses, writer, level, partial, max_batch, progress) for level in levels
        ]
    return made


def _check_trained(folder: ModelFolder, parameters: list[Parameter], splits: list[int], levels: Sequence[int]) -> None:
    for split in splits:
        if parameters[-1].layer < split:
            raise ExportError(
                f"--split {split}: the back block would have no trainable parameters",
                f"choose a split up to {parameters[-1].layer}, or train more with --lora-layers",
            )
    if levels:
        check_alike(folder, parameters)


def _describe_lora(model: ExportModel, parameters: list[Parameter], lora_options: LoraOptions) -> Lora:
    config = model.peft_model.peft_config["default"]
    return Lora(
        r=config.r,
        alpha=float(config.lora_alpha),
        targets=lora.target_names(model.peft_model),
        layers=sorted({p.layer for p in parameters if "lora_" in p.name}),
        trained=[matrix for matrix in ("A", "B") if matrix in lora_options.trained],
    )


def _list_files(folder: Path) -> list[FileEntry]:
    return [
        FileEntry(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _versions(runtimes: Sequence[Runtime]) -> dict[str, str]:
    names = ["torch", "transformers", "peft", "onnx", "onnxscript"]
    names += ["executorch"] if "executorch" in runtimes else []
    return {name: metadata.version(name) for name in names}
