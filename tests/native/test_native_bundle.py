"""The core for apps: its bundles, its command and its exported names."""

from __future__ import annotations

import ctypes
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native_library import ROOT, Core, CoreError, needs_cmake, run_mutations, write

from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.manifest import FORMAT_VERSION, MANIFEST_FILE, PLAIN_VERSION
from edge_runtime.errors import BundleError, ConfigError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), needs_cmake]


@pytest.mark.parametrize("train", ["B", "full"])
def test_a_bundle_is_opened_and_checked(
    core: Core, command: Callable[..., tuple[int, dict[str, Any]]], tiny_export: Callable[..., Bundle], train: str
) -> None:
    bundle = tiny_export("bert", train=train)
    handle = core.open("bundle_open", str(bundle.path).encode())
    core.call("bundle_verify", handle)
    assert core.library.covey_bundle_sha256(handle).decode() == bundle.sha256
    initial = bundle.initial_adapter()
    assert core.library.covey_bundle_parameters(handle) == initial.size
    adapter = core.open("adapter_open", handle, None)
    assert core.library.covey_adapter_sha256(adapter).decode() == bundle.initial_sha256
    data = ctypes.string_at(core.library.covey_adapter_data(adapter), 4 * initial.size)
    assert data == initial.tobytes()
    with pytest.raises(CoreError, match="built without ExecuTorch") as caught:
        core.open("engine_executorch", handle, ctypes.c_int64(1), 0)
    assert caught.value.code == ConfigError.exit_code
    core.library.covey_adapter_close(adapter)
    core.library.covey_bundle_close(handle)
    code, found = command("verify", "--bundle", bundle.path)
    assert (code, found["bundle_sha256"], found["files"]) == (0, bundle.sha256, len(bundle.manifest.files))


def open_and_verify(core: Core, path: Path) -> None:
    handle = core.open("bundle_open", str(path).encode())
    try:
        core.call("bundle_verify", handle)
        core.library.covey_adapter_close(core.open("adapter_open", handle, None))
    finally:
        core.library.covey_bundle_close(handle)


def test_a_missing_object_is_an_error(core: Core) -> None:
    for name, arguments, message in (
        ("bundle_verify", (None,), "bundle is missing"),
        ("bundle_check_golden", (None, 1, None), "bundle is missing"),
        ("adapter_open", (None, None, None), "bundle or adapter is missing"),
        ("engine_executorch", (None, ctypes.c_int64(1), 1, None), "bundle or engine is missing"),
        ("round_step", (None, None, None), "round or batch is missing"),
    ):
        with pytest.raises(CoreError, match=message) as caught:
            core.call(name, *arguments)
        assert (caught.value.code, caught.value.hint) == (ConfigError.exit_code, "see covey.h")


def test_golden_vectors_need_executorch(core: Core, tiny_bundle: Bundle) -> None:
    handle = core.open("bundle_open", str(tiny_bundle.path).encode())
    with pytest.raises(CoreError, match="built without ExecuTorch") as caught:
        core.call("bundle_check_golden", handle, 1, None)
    assert caught.value.code == ConfigError.exit_code
    core.library.covey_bundle_close(handle)


def test_every_file_is_guarded(core: Core, bundle_copy: Bundle) -> None:
    for entry in bundle_copy.manifest.files:
        path = bundle_copy.file(entry.path)
        original = path.read_bytes()
        path.write_bytes(bytes([original[0] ^ 1]) + original[1:])
        with pytest.raises(CoreError, match=f"{entry.path} was altered") as caught:
            open_and_verify(core, bundle_copy.path)
        assert caught.value.code == BundleError.exit_code
        path.unlink()
        with pytest.raises(CoreError, match=f"{entry.path} is missing"):
            open_and_verify(core, bundle_copy.path)
        path.symlink_to("/dev/zero")
        with pytest.raises(CoreError, match=f"{entry.path} is missing"):
            open_and_verify(core, bundle_copy.path)
        path.unlink()
        path.write_bytes(original)
    open_and_verify(core, bundle_copy.path)
    bundle_copy.file("graphs/extra.onnx").write_bytes(b"x")
    with pytest.raises(CoreError, match=r"graphs/extra.onnx is in the bundle's folder but not in its manifest"):
        open_and_verify(core, bundle_copy.path)


INPUT = {"name": "a", "dtype": "float32", "shape": [2], "role": "weight", "source": "unheard_of"}


def graph_with(**changes: Any) -> dict[str, Any]:
    """Return a manifest's graphs: one that is valid but for the changes; its file is a file of every bundle."""
    graph = {"kind": "front", "runtime": "executorch", "file": "golden.safetensors", "split": 1}
    return {"graphs": [graph | {"inputs": [INPUT], "outputs": []} | changes]}


def test_the_graph_of_the_broken_manifests_is_valid_itself(core: Core, bundle_copy: Bundle) -> None:
    path = bundle_copy.file(MANIFEST_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | graph_with()))
    core.library.covey_bundle_close(core.open("bundle_open", str(bundle_copy.path).encode()))


def test_a_bundle_of_the_version_with_top_levels_is_opened_too(core: Core, bundle_copy: Bundle) -> None:
    path = bundle_copy.file(MANIFEST_FILE)
    document = json.loads(path.read_text())
    assert document["format_version"] == PLAIN_VERSION
    path.write_text(json.dumps(document | {"format_version": FORMAT_VERSION}))
    core.library.covey_bundle_close(core.open("bundle_open", str(bundle_copy.path).encode()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format_version": 1},
            f"version 1, this Covey reads versions {PLAIN_VERSION} to {FORMAT_VERSION}",
        ),
        ({"format_version": FORMAT_VERSION, "base": {"kind": "int4"}}, "quantised base"),
        ({"splits": []}, "no split"),
        ({"weights_file": "elsewhere"}, "no file elsewhere"),
        ({"parameters": []}, "layout is empty"),
        ({"parameters": [{"name": "a", "shape": [2, 0], "layer": 0, "offset": 0}]}, "bad shape"),
        ({"parameters": [{"name": "a", "shape": [2**62, 2**62], "layer": 0, "offset": 0}]}, "bad shape"),
        ({"parameters": [{"name": "a", "shape": [4], "layer": 0, "offset": 4}]}, "does not begin"),
        ({"parameters": [{"name": "a", "shape": [2**39], "layer": 0, "offset": 0}], "graphs": []}, "does not hold a"),
        ({"task": 3}, "task: it is not an object"),
        (
            {"task": {"kind": "poetry"}},
            'kind is "poetry"; this version knows classify-head, classify-prompt',
        ),
        (graph_with(kind="middle"), 'kind is "middle"; this version knows front, back, predict, train'),
        (graph_with(runtime="abacus"), 'runtime is "abacus"; this version knows onnxruntime, executorch'),
        (graph_with(inputs=[INPUT | {"dtype": "int3"}]), 'dtype is "int3"; this version knows float32, int64, bool'),
        (graph_with(inputs=[INPUT | {"role": "spare"}]), 'role is "spare"; this version knows weight, frozen, train'),
        (graph_with(inputs=[INPUT | {"role": "trainable"}]), "unheard_of is not in the layout"),
        ({"golden": None}, "golden is missing"),
        ({"files": [{"path": "../escape", "sha256": "0" * 64, "size_bytes": 1}]}, "unsafe path"),
        ({"files": [{"path": "a//b", "sha256": "0" * 64, "size_bytes": 1}]}, "unsafe path"),
        ({"files": [{"path": "a", "sha256": "0", "size_bytes": 1}]}, "not a SHA-256"),
    ],
    ids=str,
)
def test_a_broken_manifest_is_refused(core: Core, bundle_copy: Bundle, changes: dict[str, Any], message: str) -> None:
    path = bundle_copy.file(MANIFEST_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CoreError, match=message) as caught:
        handle = core.open("bundle_open", str(bundle_copy.path).encode())
        core.open("adapter_open", handle, None)
    assert caught.value.code == BundleError.exit_code


def test_folders_and_files_that_are_no_bundle(core: Core, bundle_copy: Bundle, tmp_path: Path) -> None:
    with pytest.raises(CoreError, match="no such folder"):
        open_and_verify(core, tmp_path / "nowhere")
    weights = bundle_copy.file(bundle_copy.manifest.adapter_file)
    original = weights.read_bytes()
    handle = core.open("bundle_open", str(bundle_copy.path).encode())
    for spoiled in (b"", b"\0" * 4, b"\xff" * 64, original[: len(original) // 2], original[:8] + b"x" + original[9:]):
        weights.write_bytes(spoiled)
        with pytest.raises(CoreError) as caught:
            core.open("adapter_open", handle, None)
        assert caught.value.code == BundleError.exit_code
    size = core.library.covey_bundle_parameters(handle)
    for theta, message in ((np.zeros(size - 1, np.float32), "bytes"), (np.full(size, np.nan, np.float32), "finite")):
        with pytest.raises(CoreError, match=message):
            core.open("adapter_open", handle, str(write(tmp_path / "adapter", theta)).encode())
    bundle_copy.file(MANIFEST_FILE).unlink()
    with pytest.raises(CoreError, match="interrupted export"):
        open_and_verify(core, bundle_copy.path)


def test_the_command_says_what_is_wrong(core_build: Path, tiny_bundle: Bundle) -> None:
    program = str(core_build / "covey-core")
    for arguments, code, message in (
        ([], 2, "no command"),
        (["dance"], 2, "unknown command dance"),
        (["verify"], 2, "--bundle is missing"),
        (["verify", "--bundle", "nowhere", "--twice", "1"], 2, "unknown option --twice"),
        (["verify", "--bundle"], 2, "expected --option VALUE"),
        (["step", "--bundle", str(tiny_bundle.path), "--eps", "small"], 2, "--eps is not a number"),
        (
            ["step", "--bundle", str(tiny_bundle.path), "--variant", "odd"],
            2,
            '"odd"; choose from nested, clean',
        ),
        (["verify", "--bundle", "nowhere"], 5, "no such folder"),
        (["replay", "--log", "nowhere", "--adapter", "a", "--out", "b"], 6, "cannot read nowhere"),
        (["step", "--bundle", str(tiny_bundle.path), "--split", "1"], 3, "built without ExecuTorch"),
    ):
        result = subprocess.run([program, *arguments], check=False, capture_output=True, text=True)
        assert (result.returncode, result.stdout) == (code, "")
        assert message in result.stderr
        assert "what to do: " in result.stderr
        result = subprocess.run([program, *arguments, "--format", "json"], check=False, capture_output=True, text=True)
        if arguments and arguments[-1] != "--bundle":
            assert json.loads(result.stdout)["exit_code"] == code
    help_text = subprocess.run([program, "--help"], check=True, capture_output=True, text=True).stdout
    assert all(name in help_text for name in ("self-test", "verify", "replay", "step"))


def test_the_library_exports_its_interface_and_nothing_else(core_build: Path) -> None:
    """The library's names must not collide with an app's own SHA-256 or JSON."""
    names = subprocess.run(
        ["nm", "-D", "--defined-only", str(core_build / "libcovey.so")], check=True, capture_output=True, text=True
    ).stdout.split("\n")
    found = {line.split()[-1] for line in names if " T " in line}
    header = (ROOT / "edge_runtime" / "native" / "covey.h").read_text()
    assert found
    assert all(f"{name}(" in header for name in found)


@pytest.mark.parametrize("name", ["manifest.json", "adapter/adapter_model.safetensors", "golden.safetensors"])
def test_damaged_bundles_never_crash(mutate: Path, bundle_copy: Bundle, name: str) -> None:
    counts = run_mutations(mutate, "bundle", bundle_copy.path, name, 0, 400)
    assert counts["taken"] + counts["refused"] == 400
    assert counts["refused"] > 30
