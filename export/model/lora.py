"""LoRA on the model: a new adapter or one to continue with, and the layout of its trained tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from edge_runtime.bundle.layout import Parameter, lay_out
from edge_runtime.errors import wall
from export.errors import ExportError
from export.model.adapter_check import base_weights, check_output_embedding, check_tensors
from export.model.adapter_config import check_config
from export.model.adapter_fates import fates
from export.model.address import address_of
from export.model.names import layer_of
from export.quiet import quiet
from export.source.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from export.model.adapter_table import AdapterRow
    from export.model.address import Address
    from export.model.options import LoraOptions
    from export.source.folder import ModelFolder

DEFAULT_TARGETS = {name: architecture.lora_targets for name, architecture in ARCHITECTURES.items()}


def add_lora(model: Any, options: LoraOptions, head_modules: list[str], n_layers: int) -> Any:
    """Wrap a model with a new adapter: A is drawn from the seed and B is zero, so that the model starts unchanged.

    Args:
        model: the base model.
        options: rank, scale, targets, layers and seed of the adapter.
        head_modules: modules of a head, and a norm, which are trained and saved with the adapter.
        n_layers: number of the model's transformer layers.

    Raises:
        ExportError: the model lacks a target or a layer.
    """
    names = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    for target in options.targets:
        if target not in names:
            raise ExportError(
                f"--lora-targets: the model has no linear module {target!r}",
                f"choose from: {', '.join(sorted(names))}",
            )
    if options.layers is not None and not all(0 <= layer < n_layers for layer in options.layers):
        raise ExportError(
            f"--lora-layers {options.layers}: layers are 0 to {n_layers - 1}", f"give indexes from 0 to {n_layers - 1}"
        )
    torch.manual_seed(options.seed)
    config = LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        target_modules=list(options.targets),
        layers_to_transform=options.layers,
        modules_to_save=list(head_modules) or None,
        lora_dropout=0.0,
    )
    try:
        with quiet():
            return get_peft_model(model, config).eval()
    except ValueError as error:
        raise ExportError(
            f"PEFT refuses the LoRA options: {error}", "check --lora-targets and --lora-layers"
        ) from error


def load_lora(
    model: Any, folder: ModelFolder, head_modules: list[str], norm: str | None = None
) -> tuple[Any, list[AdapterRow]]:
    """Wrap a model with the PEFT adapter of its folder.

    Args:
        model: the base model.
        folder: the folder with the adapter.
        head_modules: modules that the adapter must hold, because the base model's are untrained.
        norm: name of the final norm, which the adapter must hold where it is to be trained; None: it is not.

    Returns:
        The wrapped model; a row for each tensor of the file that is left out because the model has it.

    Raises:
        AdapterError: a part of the adapter is refused, or does not fit the model.
        ExportError: the adapter is not readable, or lacks a head that the model needs.
    """
    adapter = folder.adapter or folder.path
    with wall(
        lambda cause: ExportError(
            f"cannot load the adapter in {adapter}: {cause}", "give an adapter that was trained on this model"
        )
    ):
        described = msgspec.json.decode((adapter / "adapter_config.json").read_bytes(), type=dict[str, Any])
        check_config(described, folder)
        stored = load_file(adapter / "adapter_model.safetensors")
        base = base_weights(model)
        with quiet():
            config = LoraConfig.from_pretrained(adapter, inference_mode=False)
            config.init_lora_weights = True  # the file's values replace the initial ones
            peft_model = get_peft_model(model, config).eval()
            # PEFT leaves tensors that the adapter lacks at random values and ignores unknown ones, with a mere warning.
            state = adapter_state(peft_model)
            left_out = check_tensors(stored, state, base, described, folder)
            check_output_embedding(peft_model, described, folder)
            set_peft_model_state_dict(peft_model, {name: stored[name] for name in state})
    for head in head_modules:
        if head not in (peft_model.peft_config["default"].modules_to_save or []):
            raise ExportError(
                f"the adapter in {adapter} has no head {head!r}, and the model has none that was trained",
                "start a new adapter: remove adapter_config.json and adapter_model.safetensors",
            )
    if norm is not None and not any(name.startswith(f"base_model.model.{norm}.") for name in state):
        raise ExportError(
            f"--train-norm: the adapter in {adapter} was trained without the final norm {norm!r}",
            "leave out --train-norm, or start a new adapter: remove the folder's adapter files",
        )
    return peft_model, left_out


def adapter_state(peft_model: Any) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors by their names in PEFT's file, without whole embeddings.

    With embeddings, PEFT would ask the model hub whether the vocabulary was changed.
    """
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return state


def target_names(peft_model: Any) -> list[str]:
    """Return the names of the modules that have LoRA, or the one pattern that the configuration gives for them."""
    targets = peft_model.peft_config["default"].target_modules
    return [targets] if isinstance(targets, str) else sorted(targets)


def save_adapter(peft_model: Any, folder: Path) -> None:
    """Write the adapter in PEFT's own format, with the same bytes on every machine and in every process.

    PEFT itself would write sets in the order of their hashes, and the path of the base model.
    """
    with quiet():
        peft_model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    config["base_model_name_or_path"] = None
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapter_names(peft_model: Any) -> dict[Address, str]:
    """Return the name of each adapter tensor in PEFT's file, by the address of its data."""
    return {address_of(tensor): name for name, tensor in adapter_state(peft_model).items()}


def make_layout(
    peft_model: Any,
    folder: ModelFolder,
    trained: list[str],
    elsewhere: Mapping[str, str] | None = None,
    norm: str | None = None,
) -> list[Parameter]:
    """Return the layout of the trained tensors, ordered by depth, then by name.

    Args:
        peft_model: the wrapped model.
        folder: the model's folder, for its depth.
        trained: the trained matrices, ``A`` and ``B`` or ``B`` alone; a head is always trained.
        elsewhere: modules with LoRA that are not trained: see adapter_fates.modules_elsewhere.
        norm: name of the final norm where it is trained: see final_norm.final_norm.
    """

    def layer(name: str) -> int:
        # Modules outside the layers that have LoRA or are a head (a pooler, a classifier) come after all layers.
        inside = layer_of(name)
        return folder.layers if inside is None else inside

    state = adapter_state(peft_model)
    judged = fates(peft_model, state, trained, elsewhere or {}, norm)
    return lay_out({name: state[name].shape for name, (fate, _) in judged.items() if fate == "trained"}, layer)
