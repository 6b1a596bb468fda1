"""The rival that needs no zeroth order: LoRA by backpropagation with checkpointing and federated averaging, in PyTorch.

It starts from the same bundle and has the same devices, cohorts and batches as the forward-only runs. A step counts as
four forward equivalents: the forward pass, its recomputation, and a backward pass that costs twice a forward pass
(with LoRA, less).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.harness.curves import point
from benchmarks.harness.fleet_run import cost_of_process
from benchmarks.harness.model_files import train_as_bundle
from edge_runtime import seeds
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.order import batch_indices
from edge_runtime.data.rows import EncodedRows, load_rows
from export.finished import load_finished
from server.fleet.cohort import choose_cohort

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch
    from export.model.tasks import TaskModel

STEP_FORWARDS = 4.0
"""Forward equivalents of a step."""


def run_backprop(settings: dict[str, Any], devices: dict[str, Path], test: Path) -> dict[str, Any]:
    """Train a fleet and evaluate it.

    Args:
        settings: of the run, as convergence.run_one takes them.
        devices: each device's file of rows.
        test: the held-out rows.

    Returns:
        What convergence.run_one returns.
    """
    torch.set_num_threads(1)
    started = time.monotonic()
    bundle, job = open_bundle(Path(settings["bundle"])), settings["job"]
    model = load_finished(bundle.path / "adapter", Path(settings["model_dir"]))
    parameters = train_as_bundle(model, bundle)
    # Transformers checkpoints layers in training mode only, and MPNet's not at all.
    transformer = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    if transformer.supports_gradient_checkpointing:
        transformer.gradient_checkpointing_enable({"use_reentrant": False})
    training = Training(model, parameters, job, settings["step"]["learning_rate"])
    rows = {name: load(bundle, path) for name, path in devices.items()}
    held_out = load(bundle, test)
    loss_start, accuracy_start = evaluate(model, held_out)
    curve, forwards = [], 0.0
    for index in range(job["rounds"]):
        cohort = choose_cohort(list(rows), job["cohort"], 1.0, job["seed"], index, 0)
        training.round({name: rows[name] for name in cohort}, index)
        forwards += STEP_FORWARDS * job["steps"] * len(cohort)
        if (index + 1) % job["eval_every"] == 0 or index + 1 == job["rounds"]:
            curve.append(point(forwards, *evaluate(model, held_out)))
    _, loss_end, accuracy_end = curve[-1]
    bytes_sent = 4 * bundle.manifest.parameters[-1].stop
    return {
        "loss_start": round(loss_start, 5),
        "loss_end": loss_end,
        "accuracy_start": round(accuracy_start, 5),
        "accuracy_end": accuracy_end,
        "forwards": round(forwards, 1),
        "curve": curve,
        "bytes_up_per_device_round": bytes_sent,
        "bytes_down_per_device_round": bytes_sent,
        **cost_of_process(time.monotonic() - started),
    }


@dataclass(frozen=True)
class Training:
    """Federated averaging of one model, which plays all devices in turn.

    Attributes:
        model: the model.
        parameters: those of its parameters that train.
        job: fields of the job.
        learning_rate: of the local steps.
    """

    model: TaskModel
    parameters: list[torch.nn.Parameter]
    job: dict[str, Any]
    learning_rate: float

    def round(self, cohort: dict[str, EncodedRows], index: int) -> None:
        """Train each device of a cohort from the round's start, and set the model to the mean weighted by rows."""
        total = sum(map(len, cohort.values()))
        start = [parameter.detach().clone() for parameter in self.parameters]
        mean = [torch.zeros_like(parameter) for parameter in self.parameters]
        for name, rows in cohort.items():
            self._set(start)
            self._local_steps(name, rows, index)
            for value, parameter in zip(mean, self.parameters, strict=True):
                value.add_(parameter.detach(), alpha=len(rows) / total)
        self._set(mean)

    def _local_steps(self, name: str, rows: EncodedRows, index: int) -> None:
        """Make one device's steps of a round, with AdamW."""
        job = self.job
        optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)
        self.model.train()
        for step in range(job["steps"]):
            chosen = batch_indices(
                len(rows),
                job["batch_size"],
                index * job["steps"] + step,
                lambda epoch: seeds.epoch_seed(job["seed"], name, epoch),
            )
            batch = rows.batch(chosen)
            loss = torch.nn.functional.cross_entropy(logits_of(self.model, batch), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.model.eval()

    def _set(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, values, strict=True):
                parameter.copy_(value)


def load(bundle: Bundle, path: Path) -> EncodedRows:
    """Return encoded rows for classification.

    Raises:
        SystemExit: the bundle is for another task.
    """
    rows = load_rows(bundle, DataConfig(str(path)))
    if not isinstance(rows, EncodedRows):
        raise SystemExit(f"this comparison is for classification; the bundle's task is {bundle.manifest.task.kind}")
    return rows


def logits_of(model: TaskModel, batch: Batch) -> torch.Tensor:
    """Return the logits of a batch, (rows, labels)."""
    logits: torch.Tensor = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
    return logits


def evaluate(model: TaskModel, rows: EncodedRows) -> tuple[float, float]:
    """Return mean loss and accuracy on rows."""
    model.eval()
    losses: list[float] = []
    right = 0
    with torch.inference_mode():
        for start in range(0, len(rows), 16):
            batch = rows.batch(range(start, min(start + 16, len(rows))))
            logits, labels = logits_of(model, batch), torch.from_numpy(batch.labels)
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
            right += int((logits.argmax(dim=1) == labels).sum())
    return float(np.mean(losses)), right / len(rows)
