"""What becomes of each part of a PEFT adapter that an export continues with: kept, trained or refused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from export.errors import AdapterError
from export.model.names import template

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import torch

Fate = Literal["kept", "trained", "refused"]


@dataclass(frozen=True)
class AdapterRow:
    """One row of the table: tensors of one kind, or a field of the configuration.

    Attributes:
        part: the tensors' name in PEFT's file, with ``{layer}`` for the layer; or the name of the field.
        tensors: number of tensors; None for a field.
        parameters: number of their parameters; None for a field.
        fate: ``kept`` (computed with and copied to the finished adapter, but not trained), ``trained`` or ``refused``.
        why: the reason, in a few words.
    """

    part: str
    tensors: int | None
    parameters: int | None
    fate: Fate
    why: str


def rows_of(
    state: Mapping[str, torch.Tensor], names: Iterable[str], judge: Callable[[str], tuple[Fate, str]]
) -> list[AdapterRow]:
    """Return the rows for some tensors: those whose names differ in their layer alone, and that share a fate, are one.

    Args:
        state: the tensors by name.
        names: names of those that the table is about.
        judge: gives a tensor's fate and the reason.
    """
    grouped: dict[tuple[str, Fate, str], list[int]] = {}
    for name in sorted(names):
        grouped.setdefault((template(name), *judge(name)), []).append(state[name].numel())
    return [AdapterRow(part, len(sizes), sum(sizes), fate, why) for (part, fate, why), sizes in sorted(grouped.items())]


def refusal(rows: Iterable[AdapterRow], what: str, hint: str) -> AdapterError:
    """Return the error for an adapter with parts that are refused; it carries the table."""
    return AdapterError(what, hint, [asdict(row) for row in rows])
