"""The page on the protocol names what a device's announcement can list."""

from __future__ import annotations

from repository import ROOT

from edge_runtime.agent.birth import METHODS

PAGE = ROOT / "docs" / "protocol.md"


def test_every_method_that_a_birth_lists_is_named() -> None:
    """In the paragraph on switches, and in the table of the birth's fields, which is made from its docstring."""
    text = PAGE.read_text(encoding="utf-8")
    (paragraph,) = [part for part in text.split("\n\n") if part.startswith("**Switches.**")]
    (field,) = [line for line in text.splitlines() if line.startswith("| `methods` |")]
    for where in (paragraph, field):
        assert [name for name in METHODS if f"`{name}`" not in where] == []
