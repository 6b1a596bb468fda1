"""The rival that needs no zeroth order: LoRA by backpropagation with checkpointing, federated averaging, in PyTorch.

The same bundle's start, the same devices, cohorts and batches as the forward-only runs. A step counts as four forward
equivalents: the forward pass, its recomputation, and a backward pass of twice a forward's cost (less with LoRA).
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.harness.model_files import file_name
from edge_runtime import seeds
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.examples import DataConfig
from edge_runtime.data.order import batch_indices
from edge_runtime.data.rows import EncodedRows, load_rows
from export.finished import load_finished
from server.fleet.cohort import choose_cohort

if TYPE_CHECKING:
    from edge_runtime.data.batch import Batch
    from export.model.tasks import TaskModel

STEP_FORWARDS = 4.0


def run_backprop(settings: dict[str, Any], devices: int) -> dict[str, Any]:
    """Train and evaluate; returns what convergence.run_one does."""
    torch.set_num_threads(1)
    started = time.monotonic()
    bundle, root, job = open_bundle(Path(settings["bundle"])), Path(settings["root"]), settings["job"]
    model = load_finished(bundle.path / "adapter", Path(settings["model_dir"]))
    trained = {p.name for p in bundle.manifest.parameters}
    parameters = []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(file_name(name) in trained)
        if parameter.requires_grad:
            parameters.append(parameter)
    # Transformers checkpoints layers in training mode only.
    transformer = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    transformer.gradient_checkpointing_enable({"use_reentrant": False})
    names = [f"device-{index:02}" for index in range(devices)]
    rows = {name: load(bundle, root / "devices" / f"{name[-2:]}.jsonl") for name in names}
    held_out = load(bundle, root / f"{settings['rows']}.jsonl")
    start = evaluate(model, held_out)
    curve, spent = [], 0.0
    for index in range(job["rounds"]):
        cohort = choose_cohort(names, job["cohort"], 1.0, job["seed"], index, 0)
        total = sum(len(rows[name]) for name in cohort)
        before = [parameter.detach().clone() for parameter in parameters]
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        for name in cohort:
            local_steps(model, parameters, before, rows[name], name, index, settings)
            spent += STEP_FORWARDS * job["steps"]
            for value, parameter in zip(mean, parameters, strict=True):
                value.add_(parameter.detach(), alpha=len(rows[name]) / total)
        with torch.no_grad():
            for parameter, value in zip(parameters, mean, strict=True):
                parameter.copy_(value)
        if (index + 1) % job["eval_every"] == 0 or index + 1 == job["rounds"]:
            loss, accuracy = evaluate(model, held_out)
            curve.append([round(spent, 1), round(loss, 5), round(accuracy, 4)])
    size = 4 * bundle.manifest.parameters[-1].stop
    return {
        "loss_start": round(start[0], 5),
        "loss_end": curve[-1][1],
        "accuracy_start": round(start[1], 5),
        "accuracy_end": curve[-1][2],
        "forwards": round(spent, 1),
        "curve": curve,
        "bytes_up_per_device_round": size,
        "bytes_down_per_device_round": size,
        "wall_s": round(time.monotonic() - started, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def local_steps(
    model: TaskModel,
    parameters: list[torch.nn.Parameter],
    before: list[torch.Tensor],
    rows: EncodedRows,
    name: str,
    index: int,
    settings: dict[str, Any],
) -> None:
    """Make one device's steps from the round's start, with AdamW."""
    job = settings["job"]
    with torch.no_grad():
        for parameter, value in zip(parameters, before, strict=True):
            parameter.copy_(value)
    optimizer = torch.optim.AdamW(parameters, lr=settings["step"]["learning_rate"], weight_decay=0.0)
    model.train()
    for step in range(job["steps"]):
        chosen = batch_indices(
            len(rows),
            job["batch_size"],
            index * job["steps"] + step,
            lambda epoch: seeds.epoch_seed(job["seed"], name, epoch),
        )
        batch = rows.batch(chosen)
        loss = torch.nn.functional.cross_entropy(logits_of(model, batch), torch.from_numpy(batch.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def load(bundle: Any, path: Path) -> EncodedRows:  # noqa: ANN401 a Bundle
    rows = load_rows(bundle, DataConfig(str(path)))
    if not isinstance(rows, EncodedRows):
        raise SystemExit("the comparison is about classification")
    return rows


def logits_of(model: TaskModel, batch: Batch) -> torch.Tensor:
    logits: torch.Tensor = model(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
    return logits


def evaluate(model: TaskModel, rows: EncodedRows) -> tuple[float, float]:
    """Return held-out loss and accuracy."""
    model.eval()
    losses, right = [], 0
    with torch.inference_mode():
        for start in range(0, len(rows), 16):
            batch = rows.batch(range(start, min(start + 16, len(rows))))
            logits, labels = logits_of(model, batch), torch.from_numpy(batch.labels)
            losses += torch.nn.functional.cross_entropy(logits, labels, reduction="none").tolist()
            right += int((logits.argmax(dim=1) == labels).sum())
    return float(np.mean(losses)), right / len(rows)
