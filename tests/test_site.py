"""The site of docs/ is built without a warning, shows what lies outside docs/, and a link to nowhere is seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from repository import ROOT

PARTS = ("docs", ".ci", "README.md", "CONTRIBUTING.md", "device_profiles", "Makefile")


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ".ci/mkdocs.yml", "-d", str(out)],
        cwd=root,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    first = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert "Covey fine-tunes language models" in first
    assert 'href="quickstart.html"' in first
    for page in (tmp_path / "site").rglob("*.html"):
        text = page.read_text("utf-8")
        assert '<script src="http' not in text, page
        assert 'rel="stylesheet" href="http' not in text, page


def test_a_link_to_nowhere_and_a_page_that_no_menu_names_are_seen(tmp_path: Path) -> None:
    for part in PARTS:
        source, target = ROOT / part, tmp_path / "copy" / part
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    page = tmp_path / "copy" / "docs" / "glossary.md"
    good = page.read_text("utf-8")
    for bad in ("[x](nothing.md)", "[x](security.md#nothing)"):
        page.write_text(f"{good}\n{bad}\n", "utf-8")
        done = build(tmp_path / "copy", tmp_path / "site")
        assert done.returncode == 1, bad
        assert "nothing" in done.stderr
    page.write_text(good, "utf-8")
    (page.parent / "lonely.md").write_text("# Lonely\n", "utf-8")
    assert "lonely.md" in build(tmp_path / "copy", tmp_path / "site").stderr
