"""The fields or columns that rows need, and which ones a file probably calls otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.data.problems import Likely, setting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHOWN_FIELDS, _SHOWN_CHARACTERS = 10, 40


def shown(fields: Sequence[str]) -> str:
    """Return names of fields for a message: the first ones, each cut to a few words."""
    texts = [repr(f if len(f) <= _SHOWN_CHARACTERS else f"{f[:_SHOWN_CHARACTERS]}…") for f in fields[:_SHOWN_FIELDS]]
    return ", ".join(texts) + (f" and {len(fields) - _SHOWN_FIELDS} more" if len(fields) > _SHOWN_FIELDS else "")


def folded(field: str) -> str:
    """Return a field's name without the differences that people overlook: capitals, and spaces around it."""
    return field.strip().casefold()


def likely_names(seen: Sequence[str], wanted: Mapping[str, str]) -> Likely:
    """Return what a file probably calls the fields that it lacks.

    Args:
        seen: names of the fields or columns that the file has.
        wanted: names of the fields that rows need, by the setting of [data] that says the name.
    """
    missing = {option: field for option, field in wanted.items() if field not in seen}
    others = {option: next((s for s in seen if folded(s) == folded(f)), None) for option, f in missing.items()}
    found = [(option, other) for option, other in others.items() if other is not None]
    if found:
        mistake = " and ".join(f"{missing[option]!r} is called {other!r} in the file" for option, other in found)
        return Likely(mistake, f"{setting(found)}, or rename it in the file")
    names = " and ".join(f"{option} (now {field!r})" for option, field in missing.items())
    return Likely(
        f"the file has other names: {shown(seen)}",
        f"set {names} under [data] in edge.toml to names that the file has (data check: "
        f"{' and '.join('--' + option.replace('_', '-') for option in missing)}), or rename them in the file",
    )
