"""A manifest's bounds, and that every check of it takes linear time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import decode_manifest
from edge_runtime.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle


def changed(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> bytes:
    manifest = json.loads(bundle.file(MANIFEST_FILE).read_bytes())
    change(manifest)
    return json.dumps(manifest).encode()


def large_layout(manifest: dict[str, Any]) -> None:
    last = manifest["parameters"][-1]
    last["shape"] = [2**40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(junk=[]), "unknown field"),
        (large_layout, "not in the layout|its initial adapter"),
        (lambda m: m["parameters"][0].update(shape=[2**80]), "not valid"),
        (lambda m: m["golden"].update(batches=0), "batches"),
        (lambda m: m["golden"].update(batches=10**9), "batches"),
        (lambda m: m["golden"].update(tolerance=1e6), "tolerance"),
        (lambda m: m["golden"].update(tolerance=0), "tolerance"),
        (lambda m: m["golden"].update(seed=-1), "seed"),
        (lambda m: m["model"].update(layers=10**9), "layers"),
        (lambda m: m["task"].update(max_tokens=10**9), "max_tokens"),
        (lambda m: m["task"].update(max_tokens=0), "max_tokens"),
        (lambda m: m["task"].update(pad_token_id=-1), "pad_token_id"),
        (lambda m: m["files"][0].update(size_bytes=-1), "size_bytes"),
        (lambda m: m["files"][0].update(path="a/" * 200 + "b"), "unsafe path"),
        (lambda m: m["files"].append(dict(m["files"][0], path="graphs")), "as a file and as a folder"),
        (lambda m: m["files"].extend(dict(m["files"][0], path=f"f{n}") for n in range(20_000)), "files"),
        (lambda m: m["graphs"].append(m["graphs"][0]), "2 times"),
    ],
)
def test_a_manifest_has_bounds(tiny_bundle: Bundle, change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode_manifest(changed(tiny_bundle, change))


def test_a_manifest_with_as_many_files_and_graphs_as_allowed_is_checked_in_linear_time(tiny_bundle: Bundle) -> None:
    """With a search through the list for each graph this would be 2.5e8 comparisons; it times out then."""

    def fill(manifest: dict[str, Any]) -> None:
        for name in ("files", "graphs"):
            first = manifest[name][0]
            for n in range(16_000):
                if name == "files":
                    manifest[name].append(dict(first, path=f"f{n}"))
                else:
                    manifest[name].append(dict(first, file=f"f{n}", split=3 + n % 4000, kind="front", inputs=[]))

    def count_only(manifest: dict[str, Any]) -> None:
        fill(manifest)
        manifest["graphs"] = manifest["graphs"][: len(manifest["graphs"]) - 12_000]

    assert len(decode_manifest(changed(tiny_bundle, count_only)).files) > 16_000


@given(data=st.data())
def test_a_manifest_with_one_value_replaced_is_a_manifest_or_an_error(tiny_bundle: Bundle, data: st.DataObject) -> None:
    odd: st.SearchStrategy[Any] = st.sampled_from([None, -1, 0, 2**63, 1e300, "", "../x", [], {}, [[]], True])

    def replace_one(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
                at[key] = data.draw(odd)
                return
            at = at[key]

    try:
        decode_manifest(changed(tiny_bundle, replace_one))
    except BundleError as error:
        assert error.hint  # noqa: PT017 either is right; which one depends on the value


@pytest.mark.parametrize("sha256", ["0" * 64 + "\n", "0" * 63, "0" * 63 + "\n", "G" * 64])
def test_a_hash_ends_where_it_seems_to_end(tiny_bundle: Bundle, sha256: str) -> None:
    with pytest.raises(BundleError, match="not valid"):
        decode_manifest(changed(tiny_bundle, lambda m: m["files"][0].update(sha256=sha256)))
