"""What MkDocs needs of a repository whose pages link to files outside docs/: some are pages, the others plain text."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "device_profiles/README.md": "device_profiles.md",
}
"""Pages outside docs/, by their path in the repository, and where they are on the site."""
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401 MkDocs' own class
    """Add the pages that lie outside docs/."""
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ANN401 MkDocs' own classes
    """Rewrite a page's links; those to sources of the code keep their text only."""
    del config
    here = next(
        (source for source, target in OUTSIDE.items() if target == page.file.src_uri), f"docs/{page.file.src_uri}"
    )

    def rewritten(match: re.Match[str]) -> str:
        image, text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, _, anchor = target.partition("#")
        whole = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        on_site = OUTSIDE.get(whole, whole.removeprefix("docs/") if whole.startswith("docs/") else None)
        if on_site is None or (files.get_file_from_path(on_site) is None and (ROOT / whole).exists()):
            return text
        relative = posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or ".")
        return f"{image}[{text}]({relative}{'#' if anchor else ''}{anchor})"

    return _LINK.sub(rewritten, markdown)
