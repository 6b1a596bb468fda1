"""Checks the pages of the documentation: the files that they name exist, and their links lead somewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACE = re.compile(r"`((?:edge_runtime|server|export|benchmarks|tests|docs|device_profiles)/[\w/.-]*[\w/])`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def faults_of_pages(root: Path) -> Iterator[str]:
    """Yield files that a page names and that do not exist, and links that lead to no file or no heading."""
    pages = [*root.glob("*.md"), *(root / "docs").glob("*.md"), *(root / "device_profiles").glob("*.md")]
    for page in sorted(pages):
        name, text = page.relative_to(root).as_posix(), page.read_text()
        for place in sorted(set(PLACE.findall(text))):
            if not (root / place).exists():
                yield f"{name} names {place}, which does not exist"
        for link in sorted(set(LINK.findall(text))):
            if not leads_somewhere(page, link):
                yield f"{name} links to {link}, which leads nowhere"


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a link of a page leads to a file and, in a page, to a heading; links to other hosts are not followed."""
    if "://" in link:
        return True
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    if not target.exists():
        return False
    return not anchor or target.suffix != ".md" or anchor in anchors(target.read_text())


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
