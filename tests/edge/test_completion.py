"""A real bash completes commands, options, choices and files of both programs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from edge_runtime.cli import main as edge_main
from server.cli import main as covey_main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROGRAMS: dict[str, Callable[[list[str]], int]] = {"covey": covey_main, "covey-edge": edge_main}


def completed(folder: Path, program: str, script: str, *words: str) -> set[str]:
    """Return what bash offers for the last word of a line."""
    asked = f"""
source {folder / "script"}
COMP_WORDS=({program} {" ".join(repr(word) for word in words)})
COMP_CWORD={len(words)}
COMP_LINE="${{COMP_WORDS[*]}}"
COMP_POINT=${{#COMP_LINE}}
$(complete -p {program} | sed -E 's/.*-F ([^ ]+).*/\\1/') {program} "${{COMP_WORDS[COMP_CWORD]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    (folder / "script").write_text(script)
    done = subprocess.run(["bash", "-c", asked], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("program", "words", "offered"),
    [
        ("covey", ("jo",), {"job"}),
        ("covey", ("job", "re"), {"report", "resume"}),
        ("covey", ("job", "list", "--form"), {"--format"}),
        ("covey", ("job", "list", "--format", "j"), {"json"}),
        ("covey", ("job", "submit", "rev"), {"reviews.toml"}),
        ("covey-edge", ("da",), {"data"}),
        ("covey-edge", ("update", "in"), {"install"}),
        ("covey-edge", ("run", "--config", "rev"), {"reviews.toml"}),
    ],
)
def test_bash_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], program: str, words: tuple[str, ...], offered: set[str]
) -> None:
    (tmp_path / "reviews.toml").write_text("")
    assert PROGRAMS[program](["completion", "bash"]) == 0
    assert completed(tmp_path, program, capsys.readouterr().out, *words) == offered


def test_the_other_shells_have_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("zsh", "tcsh"):
        assert covey_main(["completion", shell, "--format", "json"]) == 0
        assert "covey" in json.loads(capsys.readouterr().out)["script"]


def test_without_shtab_it_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert edge_main(["completion", "bash"]) == 3
    assert "pip install shtab" in capsys.readouterr().err
