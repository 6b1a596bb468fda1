"""Which tensors of an adapter are trained: the LoRA matrices that were asked for, and the task's head."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper

from export.model.names import layer_of
from export.model.one_row import run_one_row
from export.model.tasks import PooledClassifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from export.model.adapter_table import Fate
    from export.model.tasks import TaskModel

_MATRIX = re.compile(r"\.lora_([AB])\.weight$")
_BEFORE, _UNUSED = "before the first layer", "the task does not compute with it"


def fates(
    peft_model: Any, names: Iterable[str], trained: list[str], elsewhere: Mapping[str, str], norm: str | None
) -> dict[str, tuple[Fate, str]]:
    """Return the fate of each of an adapter's tensors, and the reason.

    Only what was asked for is trained. PEFT would train more: DoRA's magnitudes, biases, whole modules, embeddings.

    Args:
        peft_model: the wrapped model.
        names: the tensors' names in PEFT's file.
        trained: the trained matrices, ``A`` and ``B`` or ``B`` alone; a head is always trained.
        elsewhere: reasons why modules with LoRA are not trained, by their name: see modules_elsewhere.
        norm: name of the final norm where it is trained: see final_norm.
    """
    heads = _head_modules(peft_model)

    def judge(name: str) -> tuple[Fate, str]:
        if norm is not None and name.startswith(f"base_model.model.{norm}."):
            return "trained", "the final norm"
        if any(name.startswith(f"{head}.") for head in heads):
            return "trained", "the task's head"
        reason = next((why for module, why in elsewhere.items() if name.startswith(f"{module}.")), None)
        if reason is not None:
            return "kept", reason
        matrix = _MATRIX.search(name)
        if matrix is None:
            return "kept", _kind_of(name)
        if matrix[1] in trained:
            return "trained", f"LoRA's {matrix[1]}"
        return "kept", f"LoRA's {matrix[1]}; --lora-train {'AB' if trained == ['B'] else 'B'} trains it"

    return {name: judge(name) for name in names}


def _kind_of(name: str) -> str:
    """Return what a tensor is that is neither LoRA's A or B of a linear module nor a head."""
    if "lora_magnitude_vector" in name:
        return "DoRA's magnitude, frozen at its value"
    if "lora_embedding_" in name:
        return "LoRA on an embedding, frozen at its value"
    return "a bias, frozen at its value" if name.endswith("bias") else "a saved module, frozen at its value"


def _head_modules(peft_model: Any) -> list[str]:
    """Return the names of the saved modules that stand on the transformer: a classifier's head, no output embedding."""
    model = peft_model.get_base_model()
    if not isinstance(model, PooledClassifier) and model.get_output_embeddings() is not None:
        return []
    transformer = "encoder" if isinstance(model, PooledClassifier) else model.base_model_prefix
    return [
        f"base_model.model.{name}"
        for name, module in model.named_modules()
        if isinstance(module, ModulesToSaveWrapper) and not name.startswith(f"{transformer}.")
    ]


def modules_elsewhere(task_model: TaskModel, peft_model: Any) -> dict[str, str]:
    """Return the modules of an adapter that cannot be trained because of where they are, each with the reason.

    The layout has layers and what follows them. One row runs through the model, to see what runs before the layers, as
    OPT-350M's projection of the embedding does, and what never runs.
    """
    wrapped = {
        name: module
        for name, module in peft_model.named_modules()
        if isinstance(module, BaseTunerLayer) and layer_of(name) is None
    }
    if not wrapped:
        return {}
    first_layer = [module for name, module in peft_model.named_modules() if layer_of(name) == 0]
    found = dict.fromkeys(wrapped, _UNUSED)
    inside: list[bool] = []

    def note(name: str) -> None:
        if inside:
            found.pop(name, None)
        else:
            found[name] = _BEFORE

    before: dict[Any, Callable[[], object]] = {module: lambda: inside.append(True) for module in first_layer}
    run_one_row(task_model, before | {module: functools.partial(note, name) for name, module in wrapped.items()})
    return found
