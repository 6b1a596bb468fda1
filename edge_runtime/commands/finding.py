"""A finding of ``covey-edge doctor``: the result of one check, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from edge_runtime.errors import CoveyError

Status = Literal["ok", "warning", "problem", "absent"]


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: its name.
        status: ``problem`` keeps the device from training, ``warning`` may do so, ``absent`` is missing but not needed.
        found: the result, for people.
        advice: what to do; empty: nothing.
        values: the result, for programs.
        exit_code: the command's exit code if this is the first problem.
    """

    check: str
    status: Status
    found: str
    advice: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    exit_code: int = ConfigError.exit_code


def problem(check: str, error: CoveyError, values: dict[str, Any] | None = None) -> Finding:
    """Return an error as a finding: with its text, its hint and its exit code, as ``covey-edge run`` says it."""
    return Finding(check, "problem", error.what, error.hint, values or {}, error.exit_code)
