"""``covey_task.json``: what an adapter folder needs beside PEFT's files to become the same module again."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, TypedDict

from export.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from export.model.options import TaskOptions

FILE = "covey_task.json"


class Rebuild(TypedDict):
    """The content of ``covey_task.json``; ``pooling`` is None where the head is not ours."""

    task: str
    labels: list[str]
    template: str | None
    label_words: list[str] | None
    label_token_ids: list[int] | None
    mask_token_id: int | None
    pooling: Any
    logit_scale: float
    model_type: str


def write_rebuild(rebuild: Rebuild, folder: Path) -> None:
    """Write the file into an adapter folder."""
    (folder / FILE).write_text(json.dumps(rebuild, indent=1) + "\n")


def read_rebuild(folder: Path) -> Rebuild:
    """Read the file of an adapter folder.

    Raises:
        ExportError: it is missing, or lacks a field.
    """
    path = folder / FILE
    try:
        rebuild: Rebuild = json.loads(path.read_text())
        missing = Rebuild.__required_keys__ - set(rebuild)
    except (OSError, ValueError, TypeError) as error:
        raise ExportError(f"cannot read {path}: {error}", "give the folder that covey serve wrote") from error
    if missing:
        raise ExportError(f"{path} lacks {', '.join(sorted(missing))}", "give the folder that covey serve wrote")
    return rebuild


def go_on_with(options: TaskOptions, adapter: Path) -> TaskOptions:
    """Return the options with what an adapter of Covey's was trained with, where they leave it open.

    Pooling, logit scale and the order of the labels are part of a trained head: another one would predict something
    else. Template and label words may be changed.

    Raises:
        ExportError: an option contradicts the adapter.
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
                f"leave it as it was, or remove {FILE} and the adapter to begin anew",
            )
    return dataclasses.replace(
        options,
        template=options.template or trained["template"],
        label_words=options.label_words or trained["label_words"],
        pooling=trained["pooling"],
        logit_scale=trained["logit_scale"],
    )
