"""``bundle show`` and ``bundle diff``: what a bundle is, and in what two of them differ, by their manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.overview import differences, overview
from edge_runtime.commands.bundle_show import DIFFERENT
from edge_runtime.errors import BundleError
from server.cli import main as server_main


def changed(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle that a test may change."""
    path = bundle.path / MANIFEST_FILE
    table = json.loads(path.read_bytes())
    change(table)
    path.write_text(json.dumps(table))


def said(capsys: pytest.CaptureFixture[str], one: Path, other: Path) -> tuple[int, dict[str, Any], str]:
    code = edge_cli.main(["bundle", "diff", str(one), str(other), "--format", "json"])
    values = json.loads(capsys.readouterr().out)
    assert server_main(["bundle", "diff", str(one), str(other)]) == code
    return code, values, capsys.readouterr().out


def test_show_says_what_a_bundle_is(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = tiny_bundle.manifest
    assert edge_cli.main(["bundle", "show", str(tiny_bundle.path), "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["bundle_sha256"] == tiny_bundle.sha256
    assert values["size_bytes"] == sum(
        path.stat().st_size for path in tiny_bundle.path.rglob("*") if path.is_file()
    ) - ((tiny_bundle.path / MANIFEST_FILE).stat().st_size)
    assert values["size_bytes"] == sum(values["size_bytes_by_group"].values())
    assert len(values["graphs"]) == len(manifest.graphs)
    assert values["task"]["labels"] == manifest.task.labels
    assert server_main(["bundle", "show", str(tiny_bundle.path)]) == 0
    text = capsys.readouterr().out
    for word in (
        tiny_bundle.sha256,
        manifest.model.name,
        *manifest.task.labels,
        manifest.graphs[0].file,
        "onnxruntime",
        "on query, value, and the head: ",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("options", "said"),
    [({"norm": True, "splits": (2, 3)}, "on q_proj, v_proj, and the final norm: "), ({}, "on q_proj, v_proj: ")],
)
def test_show_says_what_a_prompts_bundle_trains(
    tiny_export: Callable[..., Bundle], capsys: pytest.CaptureFixture[str], options: dict[str, Any], said: str
) -> None:
    assert edge_cli.main(["bundle", "show", str(tiny_export("llama", task="classify-prompt", **options).path)]) == 0
    assert said in capsys.readouterr().out


@pytest.mark.slow
def test_show_knows_training_graphs_and_other_tasks(
    tiny_export: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tiny_export("llama", task="causal-lm", levels=(1, 3))
    assert overview(bundle)["levels"] == [1, 3]
    assert edge_cli.main(["bundle", "show", str(bundle.path)]) == 0
    assert "1, 3 active layers" in capsys.readouterr().out


def test_the_same_bundle_is_the_same_wherever_it_is(
    tiny_bundle: Bundle, bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    code, values, text = said(capsys, tiny_bundle.path, bundle_copy.path)
    assert (code, values["same"], values["differences"]) == (0, True, {})
    assert "are the same bundle" in text


def test_changed_files_are_named_by_what_they_are_for(
    tiny_bundle: Bundle, bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = tiny_bundle.manifest
    named = {"weights": manifest.weights_file, "tokenizer": manifest.tokenizer_file, "graphs": manifest.graphs[0].file}

    def change(table: dict[str, Any]) -> None:
        for entry in table["files"]:
            if entry["path"] in named.values():
                entry["sha256"] = "0" * 64
        table["task"]["labels"] = ["never", "always"]
        table["files"].append({"path": "adapter/extra.txt", "sha256": "1" * 64, "size_bytes": 5})

    changed(bundle_copy, change)
    code, values, text = said(capsys, tiny_bundle.path, bundle_copy.path)
    assert code == DIFFERENT
    found = values["differences"]
    assert sorted(found) == ["adapter", "fields", "graphs", "tokenizer", "weights"]
    for group, file in named.items():
        assert [(entry["file"], entry["change"]) for entry in found[group]] == [(file, "changed")]
        assert f"{file}: other content (same size)" in text
    assert found["adapter"] == [{"file": "adapter/extra.txt", "change": "only in B", "a": None, "b": 5}]
    assert [entry["name"] for entry in found["fields"]] == ["task.labels"]
    assert "task.labels: " in text


@pytest.mark.slow
def test_another_export_differs_in_fields_and_graphs(
    tiny_bundle: Bundle, tiny_export: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_export("llama", task="causal-lm", levels=(1, 3))
    code, values, _ = said(capsys, tiny_bundle.path, other.path)
    assert code == DIFFERENT
    names = {entry["name"] for entry in values["differences"]["fields"]}
    assert {"model.model_type", "task.kind", "levels"} <= names
    back = differences(other.manifest, tiny_bundle.manifest)
    assert {entry["name"]: entry["b"] for entry in back["fields"]} == {
        entry["name"]: entry["a"] for entry in values["differences"]["fields"]
    }


def test_a_folder_without_a_bundle_is_an_error(tmp_path: Path, tiny_bundle: Bundle) -> None:
    for arguments in (["show", str(tmp_path)], ["diff", str(tiny_bundle.path), str(tmp_path)]):
        assert edge_cli.main(["bundle", *arguments]) == BundleError.exit_code
