"""Checks that the task's options fit each other and the model, before anything is loaded or traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.tokens import MASK_FIELD, TEXT_FIELD
from export.errors import ExportError

if TYPE_CHECKING:
    from export.model.options import TaskOptions
    from export.source.folder import ModelFolder


def check_task_options(folder: ModelFolder, options: TaskOptions) -> None:
    """Check the options of a task against the folder's configuration.

    Raises:
        ExportError: an option is missing, contradicts another one, or does not fit the model; the message names it.
    """
    if options.kind == CAUSAL_LM:
        _check_causal(folder, options)
        return
    n_labels = len(options.labels)
    if n_labels < 2 or len(set(options.labels)) != n_labels or not all(options.labels):
        raise ExportError(
            f"--labels {','.join(options.labels)}: need two or more different names",
            "name each label once, as in --labels no,yes",
        )
    if options.kind == "classify-prompt":
        _check_prompt(folder, options)
    elif options.kind != "classify-head":
        raise ExportError(f"unknown task {options.kind!r}", "give --task classify-head, classify-prompt or causal-lm")
    elif options.logit_scale is not None and options.logit_scale <= 0:
        raise ExportError(f"--logit-scale {options.logit_scale}: must be above 0", "give a factor from 1 to 20")
    elif options.label_words is not None:
        raise ExportError(
            "--label-words: classify-head has none", "leave out --label-words, or use --task classify-prompt"
        )
    elif options.template is not None and options.template.count(TEXT_FIELD) != 1:
        raise ExportError(
            f"--template {options.template!r} must hold {TEXT_FIELD} once", "as in --template '{text} It was'"
        )
    elif folder.has_trained_classifier and options.pooling is None and folder.config.num_labels != n_labels:
        raise ExportError(
            f"the model's own head has {folder.config.num_labels} labels, --labels names {n_labels}",
            "name all labels of the model's head, or give --pooling to get a new head",
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
            raise ExportError(
                f"{flag}: causal-lm has none", f"leave out {flag}: every row holds its own prompt and completion"
            )


def _check_prompt(folder: ModelFolder, options: TaskOptions) -> None:
    if options.template is None or options.template.count(TEXT_FIELD) != 1:
        raise ExportError(
            f"classify-prompt needs a --template with {TEXT_FIELD} once", "as in --template '{text} It was'"
        )
    if options.template.count(MASK_FIELD) != (0 if folder.is_decoder else 1):
        raise ExportError(
            f"--template {options.template!r}: {folder.model_type} "
            + (f"continues a text and has no {MASK_FIELD}" if folder.is_decoder else f"needs {MASK_FIELD} once"),
            f"as in --template '{TEXT_FIELD} It was" + ("'" if folder.is_decoder else f" {MASK_FIELD}'"),
        )
    if not options.label_words or len(options.label_words) != len(options.labels):
        raise ExportError(
            f"--label-words: {len(options.label_words or [])} words for {len(options.labels)} labels",
            "give one word per label, in the order of --labels, as in --label-words ' terrible, great'",
        )
