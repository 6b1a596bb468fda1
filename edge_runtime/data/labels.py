"""Labels as files write them: a name, an index, or what ``label_names`` says; and the likely mistake behind others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from edge_runtime.data.problems import Likely
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

_MOST_DIGITS = 9
_MOST_NAMES = 20


def spelling(label: Any) -> str | None:  # noqa: ANN401 parsed JSON
    """Return a label as the file writes it (``1.0``, ``true``); None: it is neither text, number nor truth value."""
    if isinstance(label, str):
        return label
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(label) if isinstance(label, int | float) else None


def label_index(label: Any, labels: Sequence[str], names: Mapping[str, str]) -> int:  # noqa: ANN401 parsed JSON
    """Return the index of a label, -1 where it is none.

    Args:
        label: a name, an index, or a spelling in ``names``.
        labels: names of the labels.
        names: what the file writes, and the label that it means; these come first.
    """
    written = spelling(label)
    if written is not None and written in names:
        return list(labels).index(names[written])
    if isinstance(label, str):
        if label in labels:
            return list(labels).index(label)
        if not (label.isascii() and label.isdigit() and len(label) <= _MOST_DIGITS):
            return -1
        label = int(label)
    if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(labels):
        return label
    return -1


def check_names(names: Mapping[str, str], labels: Sequence[str]) -> None:
    """Check that ``label_names`` leads to labels.

    Raises:
        ConfigError: it does not.
    """
    for written, label in names.items():
        if label not in labels:
            raise ConfigError(
                f"[data] label_names says that {written!r} is {label!r}, which is not one of {', '.join(labels)}",
                "name one of these labels",
            )


def likely_mistake(wrong: Collection[str], labels: Sequence[str], *, is_most: bool) -> Likely | None:
    """Return what is likely to be behind wrong labels; None: nothing is.

    Args:
        wrong: the different wrong labels, as the file writes them.
        labels: names of the labels.
        is_most: whether most rows of the file have one of them.
    """
    if not wrong or len(wrong) > _MOST_NAMES:
        return None
    for mistake, pairs in (
        ("the labels are indexes with decimals", _decimals(wrong, labels)),
        ("the labels differ in capitals or spaces", _other_case(wrong, labels)),
        ("the labels are true and false", _truths(wrong, labels)),
        (f"the labels are counted from 1; Covey counts from 0, so 1 is {labels[-1]!r} now", _from_one(wrong, labels)),
    ):
        if pairs is not None:
            return Likely(mistake, mending(pairs))
    if not is_most:
        return None
    return Likely(f"the file has other names for {', '.join(labels)}", mending(dict.fromkeys(sorted(wrong), "…")))


def mending(pairs: Mapping[str, str]) -> str:
    """Return how to say which label each spelling means."""
    table = ", ".join(
        f"{json.dumps(written, ensure_ascii=False)} = {json.dumps(label, ensure_ascii=False)}"
        for written, label in pairs.items()
    )
    options = " ".join(f'--label-name "{written}={label}"' for written, label in pairs.items())
    return (
        f"if so, set label_names = {{ {table} }} under [data] in edge.toml (data check: {options}); "
        "or write the labels' names into the file"
    )


def _decimals(wrong: Collection[str], labels: Sequence[str]) -> dict[str, str] | None:
    pairs = {}
    for written in sorted(wrong):
        whole, point, rest = written.strip().partition(".")
        index = int(whole) if whole.isascii() and whole.isdigit() and len(whole) <= _MOST_DIGITS else len(labels)
        if not point or rest.strip("0") or index >= len(labels):
            return None
        pairs[written] = labels[index]
    return pairs


def _other_case(wrong: Collection[str], labels: Sequence[str]) -> dict[str, str] | None:
    folded = {label.strip().casefold(): label for label in labels}
    if len(folded) < len(labels) or not all(written.strip().casefold() in folded for written in wrong):
        return None
    return {written: folded[written.strip().casefold()] for written in sorted(wrong)}


def _truths(wrong: Collection[str], labels: Sequence[str]) -> dict[str, str] | None:
    if len(labels) != 2 or not {written.strip().casefold() for written in wrong} <= {"true", "false"}:
        return None
    return {written: labels[written.strip().casefold() == "true"] for written in sorted(wrong)}


def _from_one(wrong: Collection[str], labels: Sequence[str]) -> dict[str, str] | None:
    if set(wrong) != {str(len(labels))}:
        return None
    return {str(index + 1): label for index, label in enumerate(labels)}
