"""The pages of signing in and of confirming a change. Every value is escaped; nothing in them is a script."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from server.web.html import html_environment

if TYPE_CHECKING:
    from jinja2 import Environment

    from edge_runtime.errors import CoveyError

_FOLDER = Path(__file__).parent / "templates"


@functools.cache
def _environment() -> Environment:
    return html_environment("server.access")


def page(template: str, **context: object) -> str:
    """Return a page as HTML; ``context`` is what the template shows."""
    return _environment().get_template(template).render(context)


def refused_page(error: CoveyError) -> str:
    """Return the page of something that was refused."""
    return page("refused.html.jinja", what=error.what, hint=error.hint)


@functools.cache
def style() -> bytes:
    """Return the pages' style sheet."""
    return (_FOLDER / "access.css").read_bytes()
