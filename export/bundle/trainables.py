"""What an export trains, a LoRA adapter or every weight: its layout, its tensors and its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edge_runtime.bundle.manifest import Lora
from export.bundle.level_checks import check_alike
from export.errors import ExportError
from export.model import full, lora
from export.model.adapter_check import layer_differences
from export.trace.full_layout import make_layout as make_full_layout

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from edge_runtime.bundle.layout import Parameter
    from export.bundle.options import ExportOptions
    from export.bundle.weight_table import BaseWeights
    from export.model.address import Address
    from export.model.build import ExportModel
    from export.model.options import LoraOptions
    from export.trace.lift import Lifted

WEIGHTS_FILE = "weights.safetensors"


class Trainables(Protocol):
    """The trained tensors of an export."""

    @property
    def adapter_file(self) -> str:
        """Path in the bundle of the file with the trained tensors' initial values."""
        ...

    @property
    def golden_scale(self) -> float:
        """Scale of the perturbation at which the golden vectors are taken."""
        ...

    def check(self, options: ExportOptions) -> None:
        """Check that the tensors fit the splits and levels, as far as that is known before tracing.

        Raises:
            ExportError: a back block would have no trained tensors, or the layers are not trained alike.
        """
        ...

    def layout(self, lifted: Lifted) -> list[Parameter]:
        """Return the layout of the trained tensors, given the program that computes with them."""
        ...

    def names(self) -> dict[Address, str]:
        """Return the name of each tensor in the adapter file, trained or not, by the address of its data."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the adapter file by name; they share their data with the model."""
        ...

    def save(self, parameters: list[Parameter], weights: BaseWeights, bundle: Path) -> None:
        """Write the weights file, and the files of the bundle's ``adapter`` folder but ``covey_task.json``."""
        ...

    def model_parameters(self, parameters: list[Parameter], weights: BaseWeights) -> int:
        """Return the number of parameters of the base model, as far as the graphs read them."""
        ...

    def describe_lora(self, parameters: list[Parameter]) -> Lora | None:
        """Return the LoRA configuration for the manifest; None in full mode."""
        ...


@dataclass(frozen=True)
class LoraTrainables:
    """A LoRA adapter, and the head where the task has one."""

    model: ExportModel
    options: LoraOptions
    adapter_file = "adapter/adapter_model.safetensors"
    golden_scale = 0.02
    """A LoRA that is left out, on a head that starts at zero, differs by far more than the tolerance at this scale."""

    def check(self, options: ExportOptions) -> None:
        """See Trainables."""
        parameters = self._layout()
        for split in options.splits:
            if parameters[-1].layer < split:
                raise ExportError(
                    f"--split {split}: the back block would have no trainable parameters",
                    f"choose a split up to {parameters[-1].layer}, or train more layers with --lora-layers",
                )
        if options.levels:
            check_alike(self.model.folder, parameters, self._difference(parameters))

    def layout(self, _lifted: Lifted) -> list[Parameter]:
        """See Trainables."""
        return self._layout()

    def _layout(self) -> list[Parameter]:
        elsewhere = self.model.adapter.elsewhere if self.model.adapter else {}
        return lora.make_layout(
            self.model.peft_model, self.model.folder, self.options.trained, elsewhere, self.model.norm
        )

    def _difference(self, parameters: list[Parameter]) -> str | None:
        trained = [parameter.name for parameter in parameters]
        return layer_differences(self.model.peft_model, self.state(), trained, self.model.folder.layers)

    def names(self) -> dict[Address, str]:
        """See Trainables."""
        return lora.adapter_names(self.model.peft_model)

    def state(self) -> dict[str, torch.Tensor]:
        """See Trainables."""
        return lora.adapter_state(self.model.peft_model)

    def save(self, _parameters: list[Parameter], weights: BaseWeights, bundle: Path) -> None:
        """See Trainables."""
        weights.write(bundle / WEIGHTS_FILE)
        lora.save_adapter(self.model.peft_model, bundle / "adapter")

    def model_parameters(self, _parameters: list[Parameter], weights: BaseWeights) -> int:
        """See Trainables."""
        return weights.parameters

    def describe_lora(self, parameters: list[Parameter]) -> Lora:
        """See Trainables."""
        config = self.model.peft_model.peft_config["default"]
        return Lora(
            r=config.r,
            alpha=float(config.lora_alpha),
            targets=lora.target_names(self.model.peft_model),
            layers=sorted({p.layer for p in parameters if "lora_" in p.name}),
            trained=[matrix for matrix in ("A", "B") if matrix in self.options.trained],
        )


@dataclass(frozen=True)
class FullTrainables:
    """Every weight that the task computes with (full mode); the weights file is the adapter file."""

    model: ExportModel
    adapter_file = WEIGHTS_FILE
    golden_scale = 1e-3
    """Every weight moves: a larger perturbation would turn the model into noise."""

    def check(self, options: ExportOptions) -> None:
        """See Trainables; every block has weights, and ExportOptions has refused levels."""

    def layout(self, lifted: Lifted) -> list[Parameter]:
        """See Trainables."""
        return make_full_layout(self.model.peft_model, lifted, self.model.folder)

    def names(self) -> dict[Address, str]:
        """See Trainables."""
        return full.parameter_names(self.model.peft_model)

    def state(self) -> dict[str, torch.Tensor]:
        """See Trainables."""
        return full.parameter_state(self.model.peft_model)

    def save(self, parameters: list[Parameter], _weights: BaseWeights, bundle: Path) -> None:
        """See Trainables."""
        full.write_flat(bundle / WEIGHTS_FILE, parameters, self.state())
        labels = self.model.task.labels if self.model.rebuild["task"] == "classify-head" else []
        full.save_description(self.model.peft_model, self.model.folder.config, labels, bundle)

    def model_parameters(self, parameters: list[Parameter], _weights: BaseWeights) -> int:
        """See Trainables."""
        return parameters[-1].stop

    def describe_lora(self, _parameters: list[Parameter]) -> None:
        """See Trainables."""


def choose_trainables(model: ExportModel, lora_options: LoraOptions | None) -> Trainables:
    """Return what is trained: the LoRA adapter, or every weight where there are no LoRA options."""
    return FullTrainables(model) if lora_options is None else LoraTrainables(model, lora_options)
