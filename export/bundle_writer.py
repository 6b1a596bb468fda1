"""Writes a bundle: graphs, weights, adapter, tokenizer, golden vectors, and the manifest last."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from edge_runtime import __version__
from edge_runtime.bundle import Bundle, file_sha256, verify_files
from edge_runtime.errors import storage_error
from edge_runtime.golden import check_golden
from edge_runtime.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    FileEntry,
    Golden,
    Graph,
    GraphInput,
    GraphOutput,
    Lora,
    Manifest,
    Model,
    bundle_sha256,
    encode_manifest,
)
from edge_runtime.store import write_atomically
from export import lora
from export.cut import cut, whole
from export.errors import ExportError
from export.model import MAX_BATCH, build, example_batch, trace, write_rebuild
from export.onnx_graphs import dimension_names, shape_of, write_onnx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.golden import Parity
    from edge_runtime.layout import Parameter
    from edge_runtime.manifest import GraphKind
    from export.cut import Part
    from export.folder import ModelFolder
    from export.lora import LoraOptions
    from export.model import ExportModel, TaskOptions

WEIGHTS_FILE = "weights.safetensors"
ADAPTER_FILE = "adapter/adapter_model.safetensors"
REBUILD_FILE = "adapter/covey_task.json"
TOKENIZER_FILE = "tokenizer/tokenizer.json"
GOLDEN_FILE = "golden.safetensors"
GOLDEN_TOLERANCE = 1e-5
_GOLDEN_SEED = 20260101
_GOLDEN_SCALE = 0.001
_GOLDEN_SHAPES = ((2, 9), (4, 24), (1, 5))
_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}


@dataclass(frozen=True)
class Exported:
    """What an export gave."""

    bundle: Bundle
    parity: Parity


def export_bundle(
    folder: ModelFolder,
    options: TaskOptions,
    lora_options: LoraOptions,
    splits: list[int],
    out: Path,
    *,
    force: bool = False,
    progress: Callable[[str], None] = lambda _step: None,
) -> Exported:
    """Export a model folder to a bundle.

    Everything is written beside ``out`` and appears there by a rename, after the golden vectors have passed.

    Args:
        folder: the model.
        options: the task.
        lora_options: the adapter; not used where the folder has one.
        splits: layer indexes to cut at.
        out: the bundle's folder.
        force: replace a bundle that is there.
        progress: told what is being done.

    Raises:
        ExportError: something does not fit, or the graphs do not agree with PyTorch.
        StorageError: disk full or not writable.
    """
    for split in splits:
        if not 1 <= split < folder.layers:
            raise ExportError(
                f"--split {split} is out of range: the model has {folder.layers} layers",
                f"choose from 1 to {folder.layers - 1}; the back block begins at that layer",
            )
    _check_out(out, force=force)
    partial = out.with_name(out.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for name in ("graphs", "adapter", "tokenizer"):
            (partial / name).mkdir(parents=True)
        exported = _write(folder, options, lora_options, splits, partial, progress)
        if out.exists():
            shutil.rmtree(out)
        partial.replace(out)
    except OSError as error:
        raise storage_error(error, out) from error
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
    lora_options: LoraOptions,
    splits: list[int],
    partial: Path,
    progress: Callable[[str], None],
) -> Exported:
    progress("loading the model")
    model = build(folder, options, lora_options)
    peft_config = model.peft_model.peft_config["default"]
    parameters = lora.make_layout(model.peft_model, folder, lora_options.trained)
    progress("tracing")
    program = trace(model, folder)
    writer = _GraphWriter(model, folder, program, {p.name for p in parameters}, partial)
    graphs = []
    for split in splits:
        progress(f"cutting at layer {split}")
        front, back = cut(program, split)
        graphs += [writer.write("front", split, front), writer.write("back", split, back)]
    progress("writing the prediction graph")
    graphs.append(writer.write("predict", None, whole(program)))
    progress("writing weights, adapter and tokenizer")
    writer.write_weights()
    model.peft_model.save_pretrained(partial / "adapter", safe_serialization=True)
    (partial / "adapter" / "README.md").unlink(missing_ok=True)
    write_rebuild(model.rebuild, partial / REBUILD_FILE)
    model.tokenizer.save_pretrained(partial / "tokenizer")
    if not (partial / TOKENIZER_FILE).is_file():
        raise ExportError("the tokenizer has no tokenizer.json", "put one beside the model")
    golden = _write_golden(model, folder, parameters, partial / GOLDEN_FILE)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        created_by={"covey": __version__, **_versions("torch", "transformers", "peft", "onnx", "onnxscript")},
        model=Model(
            name=folder.path.resolve().name,
            model_type=folder.model_type,
            layers=folder.layers,
            parameters=writer.weight_count,
        ),
        task=model.task,
        lora=Lora(
            r=peft_config.r,
            alpha=float(peft_config.lora_alpha),
            targets=sorted(peft_config.target_modules),
            layers=sorted({p.layer for p in parameters if "lora_" in p.name}),
            trained=[matrix for matrix in ("A", "B") if matrix in lora_options.trained],
        ),
        splits=splits,
        parameters=parameters,
        weights_file=WEIGHTS_FILE,
        adapter_file=ADAPTER_FILE,
        tokenizer_file=TOKENIZER_FILE,
        golden=golden,
        graphs=graphs,
        files=_list_files(partial),
    )
    data = encode_manifest(manifest)
    bundle = Bundle(partial, manifest, bundle_sha256(data))
    progress("checking parity with PyTorch")
    parity = check_golden(bundle)
    write_atomically(partial / MANIFEST_FILE, data)
    verify_files(bundle)
    return Exported(bundle, parity)


class _GraphWriter:
    """Writes the graphs of one model and remembers which weights they use."""

    def __init__(
        self,
        model: ExportModel,
        folder: ModelFolder,
        program: Any,
        trained: set[str],
        partial: Path,
    ) -> None:
        self._trained = trained
        self._partial = partial
        self._adapter_names = lora.adapter_names(model.peft_model)
        self._state = {name: tensor.detach() for name, tensor in program.state_dict.items()}
        self._weights: dict[str, torch.Tensor] = {}
        self._name_of_data: dict[int, str] = {}
        batch = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
        self._examples = dict(zip(("input_ids", "attention_mask", "labels"), batch, strict=True))
        values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
        self._dimensions = dimension_names(values)
        self._bounds = {"batch": (1, MAX_BATCH), "tokens": (2, model.task.max_tokens)}

    @property
    def weight_count(self) -> int:
        """Number of base parameters that the graphs use."""
        return sum(tensor.numel() for tensor in self._weights.values())

    def write(self, kind: GraphKind, split: int | None, part: Part) -> Graph:
        """Write one part as an ONNX file and describe it."""
        name = f"graphs/{kind}.onnx" if split is None else f"graphs/{kind}_{split}.onnx"
        examples = [
            self._state[item.source] if item.kind == "parameter" else self._examples[item.source]
            for item in part.inputs
        ]
        write_onnx(part, examples, self._dimensions, self._bounds, self._partial / name)
        if kind == "front":
            with torch.no_grad():
                self._examples |= dict(zip(part.outputs, part.module(*examples), strict=True))
        inputs = []
        for item in part.inputs:
            role, source = self._role(item.source) if item.kind == "parameter" else (item.kind, item.source)
            inputs.append(
                GraphInput(
                    name=item.name,
                    dtype=_DTYPES[item.value.dtype],  # type: ignore[arg-type]
                    shape=shape_of(item.value, self._dimensions),
                    role=role,  # type: ignore[arg-type]
                    source=source,
                )
            )
        outputs = [
            GraphOutput(output, _DTYPES[value.dtype], shape_of(value, self._dimensions))  # type: ignore[arg-type]
            for output, value in zip(part.outputs, part.output_values, strict=True)
        ]
        return Graph(kind=kind, runtime="onnxruntime", file=name, split=split, inputs=inputs, outputs=outputs)

    def _role(self, parameter: str) -> tuple[str, str]:
        """Return the role of a parameter and its name in its file; a tied weight has one name."""
        tensor = self._state[parameter]
        address = tensor.data_ptr()
        if address in self._adapter_names:
            name = self._adapter_names[address]
            return ("trainable" if name in self._trained else "frozen"), name
        if address not in self._name_of_data:
            name = hugging_face_name(parameter)
            self._name_of_data[address] = name
            self._weights[name] = tensor
        return "weight", self._name_of_data[address]

    def write_weights(self) -> None:
        """Write the base weights that the graphs use, once each."""
        tensors = {name: tensor.contiguous() for name, tensor in self._weights.items()}
        save_file(tensors, self._partial / WEIGHTS_FILE, metadata={"format": "pt"})


def hugging_face_name(parameter: str) -> str:
    """Return a base parameter's name without what the wrappers put around it."""
    name = parameter.removeprefix("task_model.model.base_model.model.")
    return name.replace(".base_layer.", ".").replace(".original_module.", ".")


def _write_golden(model: ExportModel, folder: ModelFolder, parameters: list[Parameter], path: Path) -> Golden:
    """Write batches with the losses and logits of PyTorch eager, through the module itself, not the traced program.

    The adapter is perturbed meanwhile: at its start B is zero, a new head too, and nothing would be compared.
    """
    golden = Golden(
        file=path.name,
        batches=len(_GOLDEN_SHAPES),
        seed=_GOLDEN_SEED,
        scale=_GOLDEN_SCALE,
        tolerance=GOLDEN_TOLERANCE,
    )
    tensors: dict[str, torch.Tensor] = {}
    with lora.perturbed(model.peft_model, parameters, golden):
        for n, (rows, tokens) in enumerate(_GOLDEN_SHAPES):
            tokens_here = min(tokens, model.task.max_tokens)
            batch = example_batch(model.task, int(folder.config.vocab_size), rows, tokens_here, seed=n + 1)
            input_ids, attention_mask, labels = batch
            with torch.no_grad():
                logits = model.task_model(input_ids, attention_mask)
                loss = torch.nn.functional.cross_entropy(logits, labels)
            named = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
            named |= {"loss": loss, "logits": logits}
            tensors |= {f"{n}.{name}": tensor.contiguous() for name, tensor in named.items()}
    save_file(tensors, path)
    return golden


def _list_files(folder: Path) -> list[FileEntry]:
    return [
        FileEntry(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def _versions(*names: str) -> dict[str, str]:
    return {name: metadata.version(name) for name in names}
