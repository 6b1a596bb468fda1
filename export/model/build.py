"""Builds the module to export: the base model with its adapter, its task and its loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.data.tokens import TEXT_FIELD
from export.errors import ExportError
from export.model import lora
from export.model.adapter_fates import fates, modules_elsewhere
from export.model.adapter_table import rows_of
from export.model.completion import CompletionLoss
from export.model.final_norm import final_norm
from export.model.full import untie
from export.model.head_init import fit_head
from export.model.lora_init import public_texts, start_from_activations
from export.model.notes import fit_tokenizer, task_notes
from export.model.option_checks import check_task_options
from export.model.rebuild import continue_with
from export.model.tasks import LossModel, PooledClassifier, TaskModel, default_pooling, label_word_ids, read_examples
from export.source.architectures import longest_row
from export.source.foreign import reading
from export.source.loading import load_model
from export.source.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.adapter_table import AdapterRow
    from export.model.options import LoraOptions, TaskOptions
    from export.model.rebuild import Rebuild
    from export.model.tasks import Pooling
    from export.source.folder import ModelFolder


@dataclass(frozen=True)
class FoundAdapter:
    """The adapter that an export continues with.

    Attributes:
        rows: what is kept and what is trained.
        elsewhere: modules with LoRA that are not trained because of where they are, each with the reason.
    """

    rows: list[AdapterRow]
    elsewhere: dict[str, str]


@dataclass(frozen=True)
class ExportModel:
    """A model with its adapter, ready to be traced.

    Attributes:
        folder: the folder that it was loaded from.
        peft_model: the model as PEFT wrapped it, or bare in full mode; in evaluation mode, float32.
        task_model: the module that computes its logits.
        loss_model: the module that is traced. It takes the tensors of a batch in the order of trace.batches.sizes, and
            returns the loss, then the outputs that manifest.output_names lists.
        tokenizer: Hugging Face's tokenizer.
        task: the manifest's task.
        rebuild: the content of ``covey_task.json``, from which finished.py builds the same module again.
        notes: what differs from what was asked for, a sentence each.
        adapter: what is known about the folder's adapter; None where the adapter is new or there is none.
        norm: name of the final norm where it is trained: see final_norm.final_norm.
    """

    folder: ModelFolder
    peft_model: Any
    task_model: TaskModel
    loss_model: LossModel | CompletionLoss
    tokenizer: Any
    task: Task
    rebuild: Rebuild
    notes: list[str]
    adapter: FoundAdapter | None = None
    norm: str | None = None


def build(folder: ModelFolder, options: TaskOptions, lora_options: LoraOptions | None) -> ExportModel:
    """Load a folder and add the task and the adapter to it.

    Args:
        folder: the model.
        options: the task.
        lora_options: the adapter; None in full mode, where every weight is trained.

    Raises:
        ExportError: an option, the model and the tokenizer do not fit together; the message names the option.
    """
    if folder.adapter is not None:
        _check_adapter_is_trained(folder, lora_options)
        _check_adapter_keeps_its_start(folder, lora_options)
        options = continue_with(options, folder.adapter)
    check_task_options(folder, options)
    trains_norm = lora_options is not None and lora_options.norm
    if trains_norm and options.kind == "classify-head":
        raise ExportError(
            "--train-norm: classify-head trains its head, which stands behind the final norm", "leave out --train-norm"
        )
    tokenizer = load_tokenizer(folder)
    notes = fit_tokenizer(folder, options, tokenizer)
    task = _task(folder, options, tokenizer)
    notes += task_notes(folder, options, task)
    rebuild = _rebuild(folder, options, task)
    base, head_modules = base_module(folder, rebuild)
    if isinstance(base, PooledClassifier) and options.head_init is not None:
        _initialise_head(base, tokenizer, task, options.head_init)
    if rebuild["task"] == "classify-head" and rebuild["pooling"] is None:
        _check_padding(base, task)
    norm = final_norm(TaskModel(base, task.label_token_ids, task.mask_token_id)) if trains_norm else None
    peft_model, left_out = _with_adapter(base, head_modules, folder, lora_options, norm)
    # The module is only traced and evaluated: a scan over tensors with gradients would trace its own gradient.
    peft_model.requires_grad_(False)
    task_model = TaskModel(peft_model, task.label_token_ids, task.mask_token_id).eval()
    if lora_options is not None and lora_options.activations is not None:
        texts = public_texts(lora_options.activations, task)
        start_from_activations(task_model, tokenizer, texts, task)
    loss_model = CompletionLoss(peft_model) if task.kind == CAUSAL_LM else LossModel(task_model)
    adapter = None
    if folder.adapter is not None and lora_options is not None:
        adapter = _describe_adapter(task_model, lora_options, left_out, norm)
    return ExportModel(
        folder, peft_model, task_model, loss_model.eval(), tokenizer, task, rebuild, notes, adapter, norm
    )


def _describe_adapter(
    task_model: TaskModel, lora_options: LoraOptions, left_out: list[AdapterRow], norm: str | None
) -> FoundAdapter:
    peft_model = task_model.model
    elsewhere = modules_elsewhere(task_model, peft_model)
    state = lora.adapter_state(peft_model)
    judged = fates(peft_model, state, lora_options.trained, elsewhere, norm)
    return FoundAdapter([*rows_of(state, state, judged.__getitem__), *left_out], elsewhere)


def base_module(folder: ModelFolder, rebuild: Rebuild) -> tuple[Any, list[str]]:
    """Return the module that PEFT wraps, and the names of its head's modules, which are saved with the adapter.

    Args:
        folder: the model's folder.
        rebuild: the content of ``covey_task.json``.

    Raises:
        ExportError: the weights are unreadable, or the model has no plain output embedding for a prompt.
    """
    if rebuild["task"] in ("classify-prompt", CAUSAL_LM):
        model = load_model(folder, "causal" if folder.is_decoder else "masked")
        _check_output_embedding(model)
        return model, []
    if rebuild["pooling"] is None:
        model = load_model(folder, "sequence-classification")
        return model, ["score" if hasattr(model, "score") else "classifier"]
    encoder = load_model(folder, "base")
    model = PooledClassifier(encoder, len(rebuild["labels"]), rebuild["pooling"], rebuild["logit_scale"])
    return model.eval(), ["classifier"]


def _check_adapter_is_trained(folder: ModelFolder, lora_options: LoraOptions | None) -> None:
    if lora_options is None:
        raise ExportError(
            f"--train full: {folder.path} has an adapter, whose weights would be left out",
            "merge it into the model first (PEFT: merge_and_unload), or export with --train lora",
        )


def _check_adapter_keeps_its_start(folder: ModelFolder, lora_options: LoraOptions | None) -> None:
    if lora_options is not None and lora_options.activations is not None:
        raise ExportError(
            f"--lora-init: the adapter of {folder.path} has its own A matrices, with which it was trained",
            "leave out --lora-init, or start a new adapter: remove the folder's adapter files",
        )


def _task(folder: ModelFolder, options: TaskOptions, tokenizer: Any) -> Task:
    """Return the task as the manifest describes it, with the tokenizer's special tokens."""
    word_ids = None
    if options.kind == "classify-prompt":
        word_ids = label_word_ids(tokenizer, options.label_words or [])
    masked = options.kind == "classify-prompt" and not folder.is_decoder
    if masked and tokenizer.mask_token is None:
        raise ExportError("the tokenizer has no mask token", "use --task classify-head")
    return Task(
        kind=options.kind,
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


def _rebuild(folder: ModelFolder, options: TaskOptions, task: Task) -> Rebuild:
    """Return the content of ``covey_task.json``."""
    return {
        "task": task.kind,
        "labels": task.labels,
        "template": task.template,
        "label_words": task.label_words,
        "label_token_ids": task.label_token_ids,
        "mask_token_id": task.mask_token_id,
        "pooling": _pooling(folder, options),
        "logit_scale": options.logit_scale or 1.0,
        "model_type": folder.model_type,
    }


def _pooling(folder: ModelFolder, options: TaskOptions) -> Pooling | None:
    """Return the pooling of Covey's own head; None where the task has no head or uses the model's."""
    if options.kind != "classify-head" or (folder.has_trained_classifier and options.pooling is None):
        return None
    return options.pooling or default_pooling(folder)


def _initialise_head(model: PooledClassifier, tokenizer: Any, task: Task, examples: Path) -> None:
    """Set a new head from labelled examples, each of them put into the task's template."""
    texts, labels = read_examples(examples, task.labels)
    texts = [(task.template or TEXT_FIELD).replace(TEXT_FIELD, text) for text in texts]
    fit_head(model, tokenizer, texts, labels, task.max_tokens, task.pad_token_id)


def _with_adapter(
    base: Any, head_modules: list[str], folder: ModelFolder, lora_options: LoraOptions | None, norm: str | None
) -> tuple[Any, list[AdapterRow]]:
    """Return the base wrapped with the folder's adapter or with a new one; in full mode the base itself, untied.

    The rows are about what the adapter's file holds and is left out.
    """
    if lora_options is None:
        untie(base)
        return base, []
    if folder.adapter is not None:
        hint = "give an adapter that was trained on this model"
        with reading(f"cannot load the adapter in {folder.adapter}", hint):
            return lora.load_lora(base, folder, head_modules if isinstance(base, PooledClassifier) else [], norm)
    return lora.add_lora(base, lora_options, [*head_modules, *filter(None, [norm])], folder.layers), []


def _check_padding(classifier: Any, task: Task) -> None:
    """Check that the model and the tokenizer pad alike: a decoder's classifier finds the last token by its padding."""
    config = classifier.config
    if hasattr(classifier, "score") and config.pad_token_id != task.pad_token_id:
        raise ExportError(
            f"the model's configuration has pad_token_id {config.pad_token_id}, but its tokenizer pads with "
            f"{task.pad_token_id}: the classifier would read the wrong token",
            f"set pad_token_id to {task.pad_token_id} in config.json",
        )


def _check_output_embedding(model: Any) -> None:
    """Check that the output embedding has one row per token: a label word's logit is one of these rows."""
    decoder = model.get_output_embeddings()
    if decoder is None or decoder.weight.shape[0] != model.config.vocab_size:
        raise ExportError(f"{type(model).__name__} has no plain output embedding", "use --task classify-head")


def _pad_token(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
