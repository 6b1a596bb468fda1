"""Every command of Covey that a page shows in a block of code is one that the real parsers take."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from parsers import parser_of
from repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "device_profiles").glob("*.md")])
PROGRAMS = ("covey", "covey-edge")
_BLOCK = re.compile(r"^( *)```(?:sh|bash|console|text)?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_ENDS = ("|", "&&", "||", ";", ">", ">>", "<", "2>", "&")


def commands_of(page: Path) -> Iterator[list[str]]:
    """Yield the command lines of a page's blocks; what stands for several things ("…", "[--flag]") is none."""
    for _, block in _BLOCK.findall(page.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            if "…" in line or "..." in line:
                continue
            try:
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            except ValueError:
                continue  # the output of a command
            while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=.*", words[0])):
                del words[0]
            if words and words[0] in PROGRAMS and len(words) > 1 and not any(word.startswith("[") for word in words):
                if any(word in PROGRAMS for word in words[1:]) and not any(word in _ENDS for word in words):
                    continue  # a picture
                end = next((at for at, word in enumerate(words) if word in _ENDS), len(words))
                yield words[:end]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    return {program: parser_of(program) for program in PROGRAMS}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_parsers_take_every_command(
    page: Path, parsers: dict[str, argparse.ArgumentParser], capsys: pytest.CaptureFixture[str]
) -> None:
    refused = []
    for words in commands_of(page):
        try:
            parsers[words[0]].parse_args(words[1:])
        except SystemExit as end:
            if end.code != 0:
                refused.append(f"{shlex.join(words)}\n{capsys.readouterr().err.splitlines()[-1]}")
    assert not refused, "\n".join(refused)


def test_commands_are_found_and_a_wrong_one_is_seen(
    tmp_path: Path, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    assert sum(len(list(commands_of(page))) for page in PAGES) > 50
    page = tmp_path / "page.md"
    page.write_text("```\n$ sudo covey device list --nothing  # a comment\ncovey serve | tee log\n```\n")
    found = list(commands_of(page))
    assert found == [["covey", "device", "list", "--nothing"], ["covey", "serve"]]
    with pytest.raises(SystemExit):
        parsers["covey"].parse_args(found[0][1:])
