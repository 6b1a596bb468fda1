"""``covey_task.json``: what finished.py needs beside PEFT's files to rebuild an adapter's module."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, TypedDict

from export.errors import ExportError
from export.source.weights import read_object

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.base import BaseKind
    from export.model.options import TaskOptions

FILE = "covey_task.json"


class _Always(TypedDict):
    """What every ``covey_task.json`` has."""

    task: str
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    label_token_ids: list[int] | None
    mask_token_id: int | None
    pooling: Any
    logit_scale: float
    model_type: str


class Rebuild(_Always, total=False):
    """The content of ``covey_task.json``; ``pooling`` is None where the head is not a PooledClassifier's.

    ``base`` is there where the adapter was trained on a quantised base: what its weights were quantised to.
    """

    base: BaseKind


def write_rebuild(rebuild: Rebuild, folder: Path) -> None:
    """Write ``covey_task.json`` into an adapter folder."""
    (folder / FILE).write_text(json.dumps(rebuild, indent=1) + "\n")


def read_rebuild(folder: Path) -> Rebuild:
    """Read ``covey_task.json`` from an adapter folder.

    Raises:
        ExportError: the file is missing, is not JSON, or lacks a field.
    """
    path = folder / FILE
    content = read_object(path)
    missing = Rebuild.__required_keys__ - set(content)
    if missing:
        raise ExportError(f"{path} lacks {', '.join(sorted(missing))}", "give the folder that covey serve wrote")
    rebuild: Any = content
    return rebuild


def continue_with(options: TaskOptions, adapter: Path) -> TaskOptions:
    """Fill the options that are None with those that an adapter of Covey's was trained with.

    Pooling, logit scale and the order of the labels belong to a trained head: with others it would predict something
    else. Template and label words may change. An adapter without ``covey_task.json`` leaves the options as they are.

    Raises:
        ExportError: an option contradicts what the adapter was trained with.
    """
    if not (adapter / FILE).is_file():
        return options
    trained = read_rebuild(adapter)
    fixed = {
        "--task": (options.kind, trained["task"]),
        "--labels": (options.labels, trained["labels"]),
        "--pooling": (options.pooling or trained["pooling"], trained["pooling"]),
        "--logit-scale": (options.logit_scale or trained["logit_scale"], trained["logit_scale"]),
    }
    for flag, (asked, before) in fixed.items():
        if asked != before:
            raise ExportError(
                f"{flag} {asked} does not fit the adapter in {adapter}, which was trained with {before}",
                f"give the {flag} of the training, or remove {FILE} and the adapter's files to start a new adapter",
            )
    return dataclasses.replace(
        options,
        template=options.template or trained["template"],
        label_words=options.label_words or trained["label_words"],
        pooling=trained["pooling"],
        logit_scale=trained["logit_scale"],
    )
