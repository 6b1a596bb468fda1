"""Rows for sessions that train where none are given: drawn texts, which mean nothing, in the form of private rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import CAUSAL_LM

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from edge_runtime.bundle.manifest import Task

DRAWN_ROWS = 64
"""How many are drawn."""
_WORDS = (4, 40)
_LETTERS = (2, 8)
_ALPHABET = "etaoinshrdlucmfw"


def write_drawn_rows(path: Path, task: Task, rng: np.random.Generator) -> Path:
    """Write DRAWN_ROWS rows of a task, of 4 to 40 drawn words each, in lines of JSON; return the file's path.

    Args:
        path: the file, which is replaced; it ends in ``.jsonl``.
        task: of the bundle: its labels, or a prompt and a completion.
        rng: draws them.
    """
    path.write_text("".join(f"{json.dumps(_row(task, rng))}\n" for _ in range(DRAWN_ROWS)))
    return path


def _row(task: Task, rng: np.random.Generator) -> dict[str, str]:
    if task.kind == CAUSAL_LM:
        return {"prompt": _text(rng), "completion": _text(rng)}
    return {"text": _text(rng), "label": task.labels[int(rng.integers(len(task.labels)))]}


def _text(rng: np.random.Generator) -> str:
    return " ".join(_word(rng) for _ in range(rng.integers(*_WORDS, endpoint=True)))


def _word(rng: np.random.Generator) -> str:
    letters = rng.integers(len(_ALPHABET), size=rng.integers(*_LETTERS, endpoint=True))
    return "".join(_ALPHABET[letter] for letter in letters)
