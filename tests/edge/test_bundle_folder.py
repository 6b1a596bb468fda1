"""Bundles: every spoiled byte, missing or extra file and foreign version is found and named."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.folder import Bundle, open_bundle, verify_files
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import bundle_sha256, decode_manifest, encode_manifest
from edge_runtime.cli import main
from edge_runtime.engines.golden import check_golden, measure_parity
from edge_runtime.errors import BundleError
from edge_runtime.files.tensor_file import map_tensors

if TYPE_CHECKING:
    from pathlib import Path


def rewrite(bundle: Bundle, **changes: Any) -> None:
    path = bundle.file(MANIFEST_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_good_bundle_passes(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "verify", str(tiny_bundle.path), "--format", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["bundle_sha256"] == tiny_bundle.sha256
    assert 0 < result["parity_logits"] < 1e-5


def test_the_manifest_round_trips(tiny_bundle: Bundle) -> None:
    data = tiny_bundle.file(MANIFEST_FILE).read_bytes()
    assert encode_manifest(decode_manifest(data)) == data
    assert bundle_sha256(data) == tiny_bundle.sha256


def test_every_file_is_guarded(bundle_copy: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for entry in bundle_copy.manifest.files:
        path = bundle_copy.file(entry.path)
        original = path.read_bytes()
        path.write_bytes(bytes([original[0] ^ 1]) + original[1:])
        with pytest.raises(BundleError, match=f"{entry.path} was altered"):
            verify_files(bundle_copy)
        path.unlink()
        with pytest.raises(BundleError, match=f"{entry.path} is missing"):
            verify_files(bundle_copy)
        path.write_bytes(original)
    verify_files(bundle_copy)
    bundle_copy.file("graphs/extra.onnx").write_bytes(b"x")
    assert main(["bundle", "verify", str(bundle_copy.path)]) == BundleError.exit_code
    assert "graphs/extra.onnx is in the bundle's folder but not in its manifest" in capsys.readouterr().err


def test_another_format_version_is_named(bundle_copy: Bundle) -> None:
    rewrite(bundle_copy, format_version=2)
    with pytest.raises(BundleError, match="format version 2, this Covey reads versions 3 to 4"):
        open_bundle(bundle_copy.path)


def test_a_folder_without_a_manifest_is_an_interrupted_export(bundle_copy: Bundle, tmp_path: Path) -> None:
    bundle_copy.file(MANIFEST_FILE).unlink()
    with pytest.raises(BundleError, match="interrupted export"):
        open_bundle(bundle_copy.path)
    with pytest.raises(BundleError, match="no such folder"):
        open_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": []}, "no split"),
        ({"splits": [9]}, "no front graph at split 9"),
        ({"graphs": []}, "no predict graph"),
        ({"surprise": 1}, "not valid"),
        ({"weights_file": "elsewhere"}, "no file elsewhere"),
        ({"parameters": []}, "layout is empty"),
    ],
    ids=str,
)
def test_a_broken_manifest_is_refused(bundle_copy: Bundle, changes: dict[str, Any], message: str) -> None:
    rewrite(bundle_copy, **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle_copy.path)


@pytest.mark.parametrize("path", ["../escape", "/etc/passwd", "a/../b", "manifest.json", "a//b", ".hidden"])
def test_unsafe_paths_are_refused(bundle_copy: Bundle, path: str) -> None:
    files = json.loads(bundle_copy.file(MANIFEST_FILE).read_text())["files"]
    files[0]["path"] = path
    rewrite(bundle_copy, files=files)
    with pytest.raises(BundleError, match="unsafe path"):
        open_bundle(bundle_copy.path)


@pytest.mark.parametrize("rows", [[10**6], [-1]])
def test_rows_that_a_tensor_does_not_have_are_refused(bundle_copy: Bundle, rows: list[int]) -> None:
    graphs = json.loads(bundle_copy.file(MANIFEST_FILE).read_text())["graphs"]
    next(tensor for tensor in graphs[0]["inputs"] if tensor["role"] == "trainable")["rows"] = rows
    rewrite(bundle_copy, graphs=graphs)
    with pytest.raises(BundleError, match="has no rows"):
        open_bundle(bundle_copy.path)


@given(data=st.binary(max_size=300))
def test_noise_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(BundleError):
        decode_manifest(data)


def test_golden_vectors_find_wrong_weights(bundle_copy: Bundle) -> None:
    """One bit of a weight's sign: hashes aside, the golden vectors alone notice."""
    check_golden(bundle_copy)
    path = bundle_copy.file(bundle_copy.manifest.weights_file)
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(bytes(data))
    assert measure_parity(bundle_copy).logits > bundle_copy.manifest.golden.tolerance
    with pytest.raises(BundleError, match="golden vectors differ"):
        check_golden(bundle_copy)


def test_tensor_files_are_checked(tmp_path: Path, tiny_bundle: Bundle) -> None:
    original = tiny_bundle.file(tiny_bundle.manifest.weights_file).read_bytes()
    path = tmp_path / "w.safetensors"
    for spoiled in (b"", b"\0" * 4, b"\xff" * 64, original[: len(original) // 2], original[:8] + b"x" + original[9:]):
        path.write_bytes(spoiled)
        with pytest.raises(BundleError):
            map_tensors(path)
    with pytest.raises(BundleError, match="cannot read"):
        map_tensors(tmp_path / "missing")


def test_mapped_tensors_are_read_only_views(tiny_bundle: Bundle) -> None:
    tensors = map_tensors(tiny_bundle.file(tiny_bundle.manifest.weights_file))
    assert not any(tensor.flags.writeable or tensor.flags.owndata for tensor in tensors.values())
