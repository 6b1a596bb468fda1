"""The model to export: base, adapter and task put together, and the loss of it traced once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.data.batch import IGNORED, pad_completions
from edge_runtime.data.tokens import MASK_FIELD, TEXT_FIELD
from export.errors import ExportError
from export.model import lora
from export.model.completion import CompletionLoss
from export.model.full import untie
from export.model.head_init import fit_head
from export.model.rebuild import go_on_with
from export.model.tasks import LossModel, PooledClassifier, TaskModel, default_pooling, label_word_ids, read_examples
from export.quiet import quiet
from export.source.architectures import longest_row
from export.source.folder import load_model, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from torch.export import ExportedProgram

    from export.model.lora import LoraOptions
    from export.model.rebuild import Rebuild
    from export.model.tasks import Pooling
    from export.source.folder import ModelFolder

MAX_BATCH = 4096
MAX_CHUNK = 4096
MAX_CHUNKS = 1_000_000


@dataclass(frozen=True)
class TaskOptions:
    """What the task flags of ``covey export`` ask for; None: the default, or what the adapter was trained with."""

    kind: str
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    max_tokens: int
    pooling: Pooling | None
    logit_scale: float | None
    head_init: Path | None


@dataclass(frozen=True)
class ExportModel:
    """A model with its adapter, ready to be traced.

    Attributes:
        peft_model: the model as PEFT wrapped it, or bare where every weight is trained; evaluation mode, float32.
        task_model: its logits.
        loss_model: what is traced: it takes an example batch, in the batch's order, and gives the loss and what
            manifest.output_names lists.
        tokenizer: Hugging Face's tokenizer.
        task: the manifest's task.
        rebuild: what ``covey_task.json`` says, to build the same module again (finished.py).
    """

    peft_model: Any
    task_model: TaskModel
    loss_model: LossModel | CompletionLoss
    tokenizer: Any
    task: Task
    rebuild: Rebuild


def build(folder: ModelFolder, options: TaskOptions, lora_options: LoraOptions | None) -> ExportModel:
    """Load a folder and put the task and the adapter on it; no adapter where ``lora_options`` is None.

    Raises:
        ExportError: something does not fit; the message names it.
    """
    if lora_options is None and folder.adapter is not None:
        raise ExportError(
            f"--train full: {folder.path} has an adapter, whose weights would be left out",
            "merge it into the model first (PEFT: merge_and_unload), or train LoRA",
        )
    if folder.adapter is not None:
        options = go_on_with(options, folder.adapter)
    _check(folder, options)
    tokenizer = load_tokenizer(folder)
    word_ids = None
    if options.kind == "classify-prompt":
        word_ids = label_word_ids(tokenizer, options.label_words or [])
    masked = options.kind == "classify-prompt" and not folder.is_decoder
    if masked and tokenizer.mask_token is None:
        raise ExportError("the tokenizer has no mask token", "use --task classify-head")
    task = Task(
        kind=options.kind,  # type: ignore[arg-type]
        labels=options.labels,
        template=options.template,
        label_words=options.label_words,
        label_token_ids=word_ids,
        max_tokens=min(options.max_tokens, longest_row(folder.config)),
        pad_token_id=_pad_token(tokenizer),
        mask_token=tokenizer.mask_token if masked else None,
        mask_token_id=tokenizer.mask_token_id if masked else None,
        eos_token_id=tokenizer.eos_token_id if options.kind == CAUSAL_LM else None,
    )
    rebuild: Rebuild = {
        "task": options.kind,
        "labels": options.labels,
        "template": options.template,
        "label_words": options.label_words,
        "label_token_ids": word_ids,
        "mask_token_id": task.mask_token_id,
        "pooling": _pooling(folder, options),
        "logit_scale": options.logit_scale or 1.0,
        "model_type": folder.model_type,
    }
    base, head_modules = base_module(folder, rebuild)
    if isinstance(base, PooledClassifier) and options.head_init is not None:
        texts, labels = read_examples(options.head_init, options.labels)
        texts = [(options.template or TEXT_FIELD).replace(TEXT_FIELD, text) for text in texts]
        fit_head(base, tokenizer, texts, labels, task.max_tokens, task.pad_token_id)
    if rebuild["task"] == "classify-head" and rebuild["pooling"] is None:
        _check_padding(base, task)
    if lora_options is None:
        untie(base)
        peft_model = base
    elif folder.adapter is not None:
        needed = head_modules if isinstance(base, PooledClassifier) else []
        peft_model = lora.load_lora(base, folder.adapter, needed)
    else:
        peft_model = lora.add_lora(base, lora_options, head_modules, folder.layers)
    # Tracing and evaluation alone: a scan over tensors with gradients would trace its own gradient.
    peft_model.requires_grad_(False)
    task_model = TaskModel(peft_model, word_ids, task.mask_token_id).eval()
    loss_model = CompletionLoss(peft_model) if task.kind == CAUSAL_LM else LossModel(task_model)
    return ExportModel(peft_model, task_model, loss_model.eval(), tokenizer, task, rebuild)


def base_module(folder: ModelFolder, rebuild: Rebuild) -> tuple[Any, list[str]]:
    """Return the module that PEFT wraps, and the names of its head's modules, which are saved with the adapter.

    Args:
        folder: the model's folder.
        rebuild: the content of ``covey_task.json``.
    """
    if rebuild["task"] in ("classify-prompt", CAUSAL_LM):
        model = load_model(folder, "causal" if folder.is_decoder else "masked")
        _check_decoder(model)
        return model, []
    if rebuild["pooling"] is None:
        model = load_model(folder, "sequence-classification")
        return model, ["score" if hasattr(model, "score") else "classifier"]
    encoder = load_model(folder, "base")
    model = PooledClassifier(encoder, len(rebuild["labels"]), rebuild["pooling"], rebuild["logit_scale"])
    return model.eval(), ["classifier"]


def _pooling(folder: ModelFolder, options: TaskOptions) -> Pooling | None:
    """Return the pooling of a head of ours; None where there is none of ours."""
    if options.kind != "classify-head" or (folder.has_trained_classifier and options.pooling is None):
        return None
    return options.pooling or default_pooling(folder)


def _check(folder: ModelFolder, options: TaskOptions) -> None:
    if options.kind == CAUSAL_LM:
        _check_causal(folder, options)
        return
    n_labels = len(options.labels)
    if n_labels < 2 or len(set(options.labels)) != n_labels or not all(options.labels):
        raise ExportError(f"--labels {','.join(options.labels)}: need two or more different names", "as in: no,yes")
    if options.kind == "classify-prompt":
        _check_prompt(folder, options)
    elif options.kind != "classify-head":
        raise ExportError(f"unknown task {options.kind!r}", "tasks are: classify-head, classify-prompt, causal-lm")
    elif options.logit_scale is not None and options.logit_scale <= 0:
        raise ExportError(f"--logit-scale {options.logit_scale}: must be above 0", "try 1 to 20")
    elif options.label_words is not None:
        raise ExportError("--label-words: classify-head has none", "leave them out, or use --task classify-prompt")
    elif options.template is not None and options.template.count(TEXT_FIELD) != 1:
        raise ExportError(f"--template {options.template!r} must hold {TEXT_FIELD} once", "as in: '{text} It was'")
    elif folder.has_trained_classifier and options.pooling is None and folder.config.num_labels != n_labels:
        raise ExportError(
            f"the model's own head has {folder.config.num_labels} labels, --labels names {n_labels}",
            "name all of its labels, or give --pooling for a new head",
        )


def _check_causal(folder: ModelFolder, options: TaskOptions) -> None:
    if not folder.is_decoder:
        raise ExportError(
            f"causal-lm needs a causal language model, {folder.model_type} is an encoder",
            "use --task classify-head or classify-prompt",
        )
    given = {
        "--labels": options.labels,
        "--template": options.template,
        "--label-words": options.label_words,
        "--pooling": options.pooling,
        "--head-init": options.head_init,
    }
    for flag, value in given.items():
        if value:
            raise ExportError(f"{flag}: causal-lm has none", "leave it out: rows bring their prompts and completions")


def _check_padding(classifier: Any, task: Task) -> None:
    """A decoder's own classifier looks for the padding to find the last token: it must be the tokenizer's."""
    config = classifier.config
    if hasattr(classifier, "score") and config.pad_token_id != task.pad_token_id:
        raise ExportError(
            f"the model's configuration has pad_token_id {config.pad_token_id}, its tokenizer pads with "
            f"{task.pad_token_id}: its classifier would read the wrong token",
            f"set pad_token_id to {task.pad_token_id} in config.json",
        )


def _check_decoder(model: Any) -> None:
    """A label word's logit is a row of the output embedding: there must be one for each token."""
    decoder = model.get_output_embeddings()
    if decoder is None or decoder.weight.shape[0] != model.config.vocab_size:
        raise ExportError(f"{type(model).__name__} has no plain output embedding", "use --task classify-head")


def _check_prompt(folder: ModelFolder, options: TaskOptions) -> None:
    if options.template is None or options.template.count(TEXT_FIELD) != 1:
        raise ExportError(f"classify-prompt needs a --template with {TEXT_FIELD} once", "as in: '{text} It was'")
    if options.template.count(MASK_FIELD) != (0 if folder.is_decoder else 1):
        raise ExportError(
            f"--template {options.template!r}: {folder.model_type} "
            + (f"continues a text, it has no {MASK_FIELD}" if folder.is_decoder else f"needs {MASK_FIELD} once"),
            f"as in: '{TEXT_FIELD} It was'" if folder.is_decoder else f"as in: '{TEXT_FIELD} It was {MASK_FIELD}'",
        )
    if not options.label_words or len(options.label_words) != len(options.labels):
        raise ExportError(
            f"--label-words: {len(options.label_words or [])} words for {len(options.labels)} labels",
            "give one word for each label, in the same order, as in: --label-words ' terrible, great'",
        )


def _pad_token(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def forget_traces() -> None:
    """Make what is traced next independent of what this process has traced.

    A size that was fixed in another model's scan is remembered as one that a dynamic size cannot have.
    """
    torch._dynamo.reset()  # noqa: SLF001 it has no public name


def trace(model: ExportModel, folder: ModelFolder) -> ExportedProgram:
    """Trace the loss and what else the task gives, with dynamic numbers of rows and tokens.

    Raises:
        ExportError: torch.export cannot trace the model.
    """
    batch = example_batch(model.task, int(folder.config.vocab_size), rows=3, tokens=10)
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in size_bounds(model.task).items()}
    shapes = {name: {axis: dims[size] for axis, size in enumerate(sizes(model.task)[name])} for name in batch}
    forget_traces()
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model.loss_model, tuple(batch.values()), dynamic_shapes=shapes)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"torch.export cannot trace the model: {error}", "report the model and versions") from error


def eager(model: ExportModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss and the first of the task's outputs as PyTorch gives them, by another way than the traced one.

    For causal-lm that is Hugging Face's own forward pass with all logits.
    """
    logits, labels = model.task_model(batch["input_ids"], batch["attention_mask"]), batch["labels"]
    if model.task.kind != CAUSAL_LM:
        return torch.nn.functional.cross_entropy(logits, labels), logits
    there = logits.flatten(0, 1)[batch["positions"].flatten()]
    losses = torch.nn.functional.cross_entropy(there, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.sum() / (labels != IGNORED).sum(), losses.reshape(labels.shape)


def sizes(task: Task) -> dict[str, tuple[str, ...]]:
    """Return the names of the sizes of each tensor of a batch, in the order in which the traced module takes them."""
    rows: dict[str, tuple[str, ...]] = {"input_ids": ("batch", "tokens"), "attention_mask": ("batch", "tokens")}
    if task.kind == CAUSAL_LM:
        return rows | {"labels": ("chunks", "chunk"), "positions": ("chunks", "chunk")}
    return rows | {"labels": ("batch",)}


def size_bounds(task: Task) -> dict[str, tuple[int, int]]:
    """Return the smallest and the largest value of each named size."""
    bounds = {"batch": (1, MAX_BATCH), "tokens": (2, task.max_tokens)}
    if task.kind == CAUSAL_LM:
        bounds |= {"chunks": (1, MAX_CHUNKS), "chunk": (1, MAX_CHUNK)}
    return bounds


def example_batch(task: Task, vocab_size: int, rows: int, tokens: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch of random rows; every second one is padded.

    For causal-lm the second half of each row is its completion, in chunks of up to 5 positions: several of them, the
    last one not full where that is possible.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, vocab_size, (rows, tokens), generator=generator)
    # A pad token inside a row would end it for models that look for padding themselves.
    input_ids[input_ids == task.pad_token_id] = (task.pad_token_id + 1) % vocab_size
    attention_mask = torch.ones_like(input_ids)
    lengths = [tokens] * rows
    for row in range(1, rows, 2):
        lengths[row] = length = max(2, tokens - 1 - row % tokens)
        attention_mask[row, length:] = 0
        input_ids[row, length:] = task.pad_token_id
    if task.mask_token_id is not None:
        input_ids[input_ids == task.mask_token_id] = (task.pad_token_id + 1) % vocab_size
        input_ids[:, 1] = task.mask_token_id
    if task.kind == CAUSAL_LM:
        texts = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        batch = pad_completions(texts, [len(text) // 2 for text in texts], task.pad_token_id, chunk_tokens=5)
        labels, positions = torch.from_numpy(batch.labels), torch.from_numpy(batch.positions)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, "positions": positions}
    labels = torch.randint(0, len(task.labels), (rows,), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
