"""The finished LoRA matrices as a GGUF adapter, which llama.cpp adds to a GGUF of the same base model.

The form is that of llama.cpp's convert_lora_to_gguf: for each weight ``NAME``, ``NAME.lora_a`` (r, inputs) and
``NAME.lora_b`` (outputs, r), the rows of B in GGUF's order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import Linear

from export.errors import ExportError
from export.finished import load_finished
from export.outputs.folder import new_folder
from export.outputs.gguf_form import ARCHITECTURES, in_rows_of_gguf
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.values import Tensor

ADAPTER_FILE = "adapter.gguf"
_PREFIX = "base_model.model."


def write_gguf_lora(adapter: Path, model_dir: Path, out: Path) -> int:
    """Write a finished adapter as ``adapter.gguf``; return its number of matrices A (as many as B).

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.

    Raises:
        ExportError: see load_finished; or every weight was trained, a head or a norm was trained, or GGUF's form of the
            architecture is not known here.
        StorageError: see new_folder.
    """
    folder = look_at(model_dir)
    architecture = ARCHITECTURES.get(folder.model_type)
    if architecture is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ExportError(f"a GGUF adapter of {folder.model_type} cannot be written; known: {known}", "use --to peft")
    model = load_finished(adapter, model_dir).model
    if not isinstance(model, PeftModel):
        raise ExportError("every weight was trained, so there is no LoRA adapter", "use --to merged")
    settings = model.peft_config["default"]
    if settings.modules_to_save:
        raise ExportError(
            f"{', '.join(settings.modules_to_save)} was trained as a whole, for which a GGUF adapter has no place",
            "use --to gguf for a language model, else --to peft or --to merged",
        )
    names = gguf.get_tensor_name_map(architecture, folder.layers)
    with new_folder(out) as partial:
        writer = gguf.GGUFWriter(partial / ADAPTER_FILE, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type("adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(settings.lora_alpha))
        written = 0
        for name, module in model.named_modules():
            if isinstance(module, Linear):
                _add(writer, names, name.removeprefix(_PREFIX), module, float(settings.lora_alpha), folder.config)
                written += 1
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return written


def _add(writer: Any, names: Any, name: str, module: Any, alpha: float, config: Any) -> None:
    """Add the matrices of one module; its scale goes into B as far as alpha / r does not say it."""
    target = names.get_name(f"{name}.weight", try_suffixes=(".weight",))
    if target is None:
        raise ExportError(f"GGUF has no name for {name}", "use --to peft")
    a = _array(module.lora_A["default"].weight)
    b = _array(module.lora_B["default"].weight) * np.float32(module.scaling["default"] * len(a) / alpha)
    b = in_rows_of_gguf(b, name, config)
    writer.add_tensor(f"{target}.lora_a", a)
    writer.add_tensor(f"{target}.lora_b", np.ascontiguousarray(b))


def _array(weight: torch.Tensor) -> Tensor:
    array: Tensor = weight.detach().to(torch.float32).contiguous().numpy()
    return array
