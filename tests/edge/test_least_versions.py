"""A device compares what it has with what a bundle needs, before it fetches more than the manifest."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.config import EdgeConfig
from edge_runtime.agent.too_old import take_too_old
from edge_runtime.bundle.manifest import MANIFEST_FILE, Manifest
from edge_runtime.bundle.manifest_file import bundle_sha256, decode_manifest, encode_manifest
from edge_runtime.bundle.needs import Needs, advice, is_older, unmet_needs
from edge_runtime.cli import main
from edge_runtime.commands.doctor_versions import versions_finding
from edge_runtime.data.examples import DataConfig
from edge_runtime.engines.choose import ONNX_RUNTIME
from edge_runtime.engines.least_versions import check_versions, installed_versions
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.protocol.side_messages import TooOld
from edge_runtime.store.bundles import install_bundle
from edge_runtime.store.store import Store
from edge_runtime.store.too_old import TOO_OLD_FILE, TooOldNote, write_too_old

NEEDS = Needs({"onnxruntime": "1.18", "executorch": "1.5.1"}, "0.20", 10, {"ai.onnx": 20, "com.microsoft": 1})
VERSIONS = st.lists(st.integers(0, 99), min_size=1, max_size=4)


def _needing(manifest: Manifest, **changes: Any) -> Manifest:
    return msgspec.structs.replace(manifest, needs=msgspec.structs.replace(NEEDS, **changes))


TOO_NEW = [
    ({"runtimes": {"onnxruntime": "99.1"}}, r"onnxruntime \S+ is too old: ONNX IR 10, opset 20.* needs 99.1 or newer"),
    ({"tokenizers": "99"}, r"tokenizers \S+ is too old: tokenizer.json needs 99 or newer"),
]


@given(VERSIONS, VERSIONS)
def test_versions_are_compared_by_their_numbers(one: list[int], other: list[int]) -> None:
    text, against = ".".join(map(str, one)), ".".join(map(str, other))
    longest = max(len(one), len(other))
    padded = [numbers + [0] * (longest - len(numbers)) for numbers in (one, other)]
    assert is_older(text, against) == (padded[0] < padded[1])


@pytest.mark.parametrize(
    ("found", "is_too_old"),
    [("1.17.3", True), ("1.9", True), ("1.18", False), ("1.18.0+cpu", False), ("1.23rc1", False), ("nightly", False)],
)
def test_only_a_version_that_is_known_to_be_older_is_too_old(found: str, is_too_old: bool) -> None:
    unmet = unmet_needs(NEEDS, "onnxruntime", {"onnxruntime": found, "tokenizers": "0.21"})
    assert bool(unmet) == is_too_old
    if unmet:
        assert "onnxruntime>=1.18" in advice(unmet)


def test_unknown_is_not_judged() -> None:
    assert unmet_needs(None, "onnxruntime", {"onnxruntime": "0.1"}) == []
    assert unmet_needs(NEEDS, "onnxruntime", {"numpy": "2"}) == []


def test_a_board_s_own_build_of_the_runtime_is_judged_as_the_runtime() -> None:
    (unmet,) = unmet_needs(NEEDS, "onnxruntime", {"onnxruntime-gpu": "1.17.0"})
    assert unmet.package == "onnxruntime-gpu"


def test_each_engine_is_judged_by_its_own_version() -> None:
    versions = {"executorch": "1.4.0", "tokenizers": "0.19.1"}
    assert [unmet.package for unmet in unmet_needs(NEEDS, "executorch", versions)] == ["executorch", "tokenizers"]


@pytest.mark.parametrize("version", ["", "1.x", "1.2.3.4.5", "1.18\n", "latest"])
def test_a_manifest_with_needs_that_are_no_versions_is_refused(tiny_export: Any, version: str) -> None:
    manifest = _needing(tiny_export("bert").manifest, tokenizers=version)
    with pytest.raises(BundleError):
        decode_manifest(encode_manifest(manifest))


class _Source:
    """Serves a manifest, and nothing else: whatever else is asked for is a failure of the test."""

    def __init__(self, manifest: bytes) -> None:
        self.manifest = manifest

    def data(self, sha256: str, _most_bytes: int) -> bytes:
        assert sha256 == bundle_sha256(self.manifest)
        return self.manifest

    def file(self, sha256: str, *_: Any) -> None:
        raise AssertionError(f"{sha256} was fetched")


@pytest.mark.parametrize(("changes", "expected"), TOO_NEW)
def test_nothing_but_the_manifest_is_fetched(
    tiny_export: Any, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    data = encode_manifest(_needing(tiny_export("bert").manifest, **changes))
    source: Any = _Source(data)
    with pytest.raises(ConfigError, match=expected):
        install_bundle(Store(tmp_path), source, bundle_sha256(data), ONNX_RUNTIME)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(("changes", "expected"), TOO_NEW)
def test_bundle_verify_says_what_is_too_old(
    tiny_export: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    bundle = tiny_export("bert")
    path = tmp_path / "copy"
    shutil.copytree(bundle.path, path)
    (path / MANIFEST_FILE).write_bytes(encode_manifest(_needing(bundle.manifest, **changes)))
    assert main(["bundle", "verify", str(path)]) == ConfigError.exit_code
    assert re.search(expected, capsys.readouterr().err)


def _config(root: Path) -> EdgeConfig:
    return EdgeConfig(
        name="pi", broker="mqtt://unused", data=DataConfig(str(root / "data.jsonl")), state_dir=str(root / "state")
    )


def test_doctor_says_what_the_server_has_said_until_something_is_replaced(tmp_path: Path, tiny_export: Any) -> None:
    config, sha256 = _config(tmp_path), "a" * 64
    assert versions_finding(config, None).status == "ok"
    reason = "onnxruntime 1.17.3 is too old\n  what to do: pip install 'onnxruntime>=1.18'"
    told = TooOld(job="job", bundle_sha256=sha256, reason=reason)
    take_too_old(told, Store(Path(config.state_dir)), "onnxruntime")
    found = versions_finding(config, None)
    assert (found.status, found.exit_code) == ("problem", ConfigError.exit_code)
    assert "1.17.3" in found.found
    assert found.advice == "pip install 'onnxruntime>=1.18'"
    write_too_old(Path(config.state_dir), TooOldNote("job", sha256, reason, {"onnxruntime": "1.17.3"}))
    assert versions_finding(config, tiny_export("bert")).status == "ok"
    of_an_older_covey = TooOldNote("job", sha256, reason, installed_versions("onnxruntime") | {"covey": "0.0.9"})
    write_too_old(Path(config.state_dir), of_an_older_covey)
    assert versions_finding(config, None).status == "ok"
    (Path(config.state_dir) / TOO_OLD_FILE).write_bytes(b"{")
    assert versions_finding(config, None).status == "warning"


@pytest.mark.parametrize(("changes", "expected"), TOO_NEW)
def test_doctor_judges_the_current_bundle(
    tmp_path: Path, tiny_export: Any, changes: dict[str, Any], expected: str
) -> None:
    bundle = tiny_export("bert")
    needing = dataclasses.replace(bundle, manifest=_needing(bundle.manifest, **changes))
    found = versions_finding(_config(tmp_path), needing)
    assert found.status == "problem"
    assert re.search(expected, found.found)


def test_an_old_bundle_is_checked_as_ever(tiny_export: Any) -> None:
    check_versions(msgspec.structs.replace(tiny_export("bert").manifest, needs=None), "onnxruntime")
    check_versions(tiny_export("bert").manifest, "onnxruntime")
