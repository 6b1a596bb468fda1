"""docs/finish.md: its commands run, in the order of the page."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import repository
from exports import generic_adapter, model_dir_of
from parity import finished_folder
from tiny_exports import TinyExport

from edge_runtime.bundle.folder import Bundle
from edge_runtime.commands.bundle_show import DIFFERENT
from server.cli import main

PAGE = (repository.ROOT / "docs" / "finish.md").read_text("utf-8")
COMMANDS = re.findall(
    r"^covey .*$", "\n".join(re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)), re.MULTILINE
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the page names: a model, its bundle, another bundle and a finished adapter."""
    root = tmp_path_factory.mktemp("page")
    bundle: Bundle = TinyExport("llama", task="classify-prompt").write(
        root / "made" / "models", root / "made" / "b" / "x"
    )
    shutil.copytree(model_dir_of(bundle, "llama"), root / "my-model")
    shutil.copytree(bundle.path, root / "bundle")
    TinyExport("bert").write(root / "made" / "models", root / "other-bundle")
    finished_folder(bundle, generic_adapter(bundle), root / "finished")
    return root


def test_the_page_has_commands() -> None:
    assert len(COMMANDS) == 8


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_runs(folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "--to pte" in command:
        pytest.importorskip("executorch")
    monkeypatch.chdir(folder)
    assert main(shlex.split(command)[1:]) == (DIFFERENT if "bundle diff" in command else 0)
