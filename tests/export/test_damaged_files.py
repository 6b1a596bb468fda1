"""Stand-ins, cut files and flipped bytes: whatever a file of a model folder holds, an export ends in its own error."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
from exports import HEAD, export
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_folders import MAKERS, POINTER, path_in, read, refusal

from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FUZZ = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("kind", MAKERS)
def test_good_folders_are_read(good_folder: Callable[[str], Path], kind: str) -> None:
    read(good_folder(kind))


STAND_INS = [
    ("safetensors", "model.safetensors"),
    ("safetensors", "config.json"),
    ("safetensors", "tokenizer.json"),
    ("safetensors", "tokenizer_config.json"),
    ("safetensors", "1_Pooling/config.json"),
    ("shards", "model-00002-of-*.safetensors"),
    ("shards", "model.safetensors.index.json"),
    ("pickle", "pytorch_model.bin"),
    ("gguf", "model.gguf"),
    ("adapter", "adapter_model.safetensors"),
    ("adapter", "adapter_config.json"),
    ("adapter", "config.json"),
]


@pytest.mark.parametrize(("kind", "pattern"), STAND_INS)
def test_stand_ins_are_named(copy_of: Callable[[str], Path], kind: str, pattern: str) -> None:
    path = path_in(copy_of(kind), pattern)
    for content, message in (
        (POINTER, f"{path} is a Git LFS pointer of {len(POINTER)} bytes, not the file itself, which has 123480 bytes"),
        ("", f"{path} is empty (0 bytes)"),
        ("<!DOCTYPE html>\n<html>log in</html>", f"{path} is a web page"),
    ):
        path.write_text(content)
        assert message in refusal(_root(path, pattern))
    path.unlink()
    path.symlink_to("../../blobs/4d4d")
    assert f"{path} is a link to ../../blobs/4d4d, which is not there" in refusal(_root(path, pattern))


def _root(path: Path, pattern: str) -> Path:
    return path.parents[pattern.count("/")]


def test_the_command_says_what_to_do_about_a_pointer(
    copy_of: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy_of("pickle") / "pytorch_model.bin").write_text(POINTER)
    assert export(tmp_path / "pickle", tmp_path / "bundle", *HEAD) == ExportError.exit_code
    assert "what to do: run `git lfs pull` in the folder, or download it again" in capsys.readouterr().err


CUT = [
    ("safetensors", "model.safetensors"),
    ("safetensors", "config.json"),
    ("safetensors", "tokenizer.json"),
    ("shards", "model-00001-of-*.safetensors"),
    ("shards", "model.safetensors.index.json"),
    ("pickle", "pytorch_model.bin"),
    ("gguf", "model.gguf"),
    ("adapter", "adapter_model.safetensors"),
]


@pytest.mark.parametrize(("kind", "pattern"), CUT)
def test_a_file_cut_anywhere_is_refused_by_name(copy_of: Callable[[str], Path], kind: str, pattern: str) -> None:
    folder = copy_of(kind)
    path = path_in(folder, pattern)
    whole = path.read_bytes()

    @FUZZ
    @given(st.integers(0, len(whole.rstrip()) - 1))
    def cut(keep: int) -> None:
        path.write_bytes(whole[:keep])
        message = refusal(folder)
        assert str(path) in message or str(path.parent) in message
        if kind != "safetensors" or pattern == "model.safetensors":
            assert str(keep) in message or "cannot read" in message

    cut()


@pytest.mark.parametrize(("kind", "pattern"), CUT)
def test_flipped_bytes_never_end_in_another_exception(copy_of: Callable[[str], Path], kind: str, pattern: str) -> None:
    """A flip inside the values of a tensor cannot be seen; one anywhere else is refused or changes nothing."""
    folder = copy_of(kind)
    path = path_in(folder, pattern)
    whole = path.read_bytes()

    @FUZZ
    @given(st.data())
    def flip(data: st.DataObject) -> None:
        # Most of a file are its values: half of the flips go to where the header is.
        limit = data.draw(st.sampled_from([len(whole), min(len(whole), 2000)]))
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, limit - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(changed)
        with contextlib.suppress(ExportError):
            read(folder)

    flip()
