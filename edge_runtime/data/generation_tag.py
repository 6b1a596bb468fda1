"""``{% generation %}`` … ``{% endgeneration %}``: what a chat template says the assistant wrote.

transformers gave templates this tag. Here it puts a mark before and behind what it encloses: two code points that no
row can have, because a row with half a character is left out (problems.damage).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

BEGIN, END = "\ud800", "\ud801"


def generation_tag() -> type[Extension]:
    """Return jinja2's extension that encloses in marks what stands in the tag; jinja2 must be installed."""
    from jinja2 import nodes  # noqa: PLC0415 of an extra
    from jinja2.ext import Extension  # noqa: PLC0415

    class GenerationTag(Extension):
        """What is set inside is not known outside, as in transformers."""

        tags = {"generation"}  # noqa: RUF012 jinja2 reads a set here

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """Return the nodes of one tag; jinja2 calls it."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            begin, end = (nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (BEGIN, END))
            return [begin, nodes.Scope(body).set_lineno(line), end]

    return GenerationTag


def without_marks(marked: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a rendered text without marks, and the span of characters of each tag that encloses any, ascending."""
    parts: list[str] = []
    spans: list[tuple[int, int]] = []
    length = 0
    for index, piece in enumerate(marked.split(BEGIN)):
        inside, _, behind = piece.partition(END) if index else ("", "", piece)
        spans += [(length, length + len(inside))] if inside else []
        parts += [inside, behind]
        length += len(inside) + len(behind)
    return "".join(parts), spans
