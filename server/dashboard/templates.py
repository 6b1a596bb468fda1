"""Writes pages from templates: every value is escaped, and a name that a template has not been given is an error."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__
from server.dashboard import formats
from server.web.html import html_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment

STATIC = Path(__file__).parent / "static"
"""Style sheet, script and chart library, served as they are."""
_NAV = {
    "/ui/": "Fleet",
    "/ui/jobs": "Jobs",
    "/ui/rollouts": "Rollouts",
    "/ui/joins": "Enrolment",
    "/ui/audit": "Audit",
}


@functools.cache
def _environment() -> Environment:
    environment = html_environment("server.dashboard")
    environment.filters |= formats.FILTERS
    environment.globals |= {"nav": _NAV, "covey_version": __version__, "messages": ()}
    return environment


def render(template: str, context: Mapping[str, Any]) -> str:
    """Return a page as HTML.

    Args:
        template: name of a file in ``templates``; pages extend ``base.html.jinja``, which has the blocks title and
            content.
        context: what the template shows. ``here`` is the page's path in the navigation; ``messages``, which may be left
            out, are sentences above the content.
    """
    return _environment().get_template(template).render(context)
