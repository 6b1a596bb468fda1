"""The model to export: base, adapter and task put together, and the loss of it traced once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.manifest import CAUSAL_LM, Task
from edge_runtime.data.tokens import TEXT_FIELD
from export.errors import ExportError
from export.model import lora
from export.model.completion import CompletionLoss
from export.model.full import untie
from export.model.head_init import fit_head
from export.model.option_checks import _check
from export.model.rebuild import go_on_with
from export.model.tasks import LossModel, PooledClassifier, TaskModel, default_pooling, label_word_ids, read_examples
from export.source.architectures import longest_row
from export.source.folder import load_model, load_tokenizer

if TYPE_CHECKING:
    from export.model.options import LoraOptions, TaskOptions
    from export.model.rebuild import Rebuild
    from export.model.tasks import Pooling
    from export.source.folder import ModelFolder


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


def _pad_token(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
