"""A headless Chromium for tests of pages, and the accessibility check of axe-core (vendored: axe/, version 4.14.1)."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_AXE = Path(__file__).parent / "axe" / "axe.min.js"
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_SERIOUS = ("serious", "critical")


@contextlib.contextmanager
def chromium(profile: Path, **options: Any) -> Iterator[Any]:
    """Run Chromium with a new profile; yields its context. Skips where it, or Playwright, is not installed."""
    api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    binary = shutil.which("chromium")
    if binary is None:
        pytest.skip("needs Chromium (Debian package chromium)")
    with api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile), executable_path=binary, headless=True, args=_FLAGS, **options
        )
        try:
            yield context
        finally:
            context.close()


def serious_findings(page: Any) -> list[str]:
    """Return what axe-core finds in a page that is serious or worse."""
    page.evaluate(_AXE.read_text())
    found = page.evaluate("axe.run().then(done => done.violations)")
    return [
        f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes']][:3]}"
        for one in found
        if one["impact"] in _SERIOUS
    ]
