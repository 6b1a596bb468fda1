"""What a bundle's training graphs need: memory by the manifest, and no more rows than a runtime planned for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from layered import with_levels

from edge_runtime.agent.backprop_plan import check_plan
from edge_runtime.bundle.bounds import check_bounds, check_rows, largest_batch
from edge_runtime.bundle.folder import Bundle
from edge_runtime.bundle.manifest import Activations
from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.bundle.memory_need import bytes_for, level_need, parameter_bytes
from edge_runtime.errors import TrainingError
from edge_runtime.protocol.layer_dropout import Stld
from edge_runtime.protocol.plans import AdapterRef, BackpropPlan, BlobRef

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Graph, Manifest


@pytest.fixture(scope="session")
def leveled(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return with_levels(tiny_bundle, tmp_path_factory.mktemp("leveled") / "bundle")


def changed(manifest: Manifest, **fields: object) -> Manifest:
    """Return a manifest with these fields in its training graphs."""

    def change(graph: Graph) -> Graph:
        return msgspec.structs.replace(graph, **fields) if graph.kind == "train" else graph

    return msgspec.structs.replace(manifest, graphs=[change(graph) for graph in manifest.graphs])


def test_the_manifest_says_what_a_level_needs(leveled: Bundle) -> None:
    """Weights, and the values with one row, with a margin; each further row as often as there is one.

    Without activations in the manifest, the estimate counts hidden sizes.
    """
    manifest = changed(leveled.manifest, activations=Activations(first_row=1000, further_row=300))
    need = level_need(manifest, 2)
    weights = parameter_bytes(manifest.training_graph(2))
    assert (need.bytes_needed, need.bytes_a_row) == (weights + 1400, 420)
    assert bytes_for(need, 5) == weights + 1400 + 4 * 420
    assert level_need(leveled.manifest, 2).bytes_a_row > 420
    assert decode_manifest(encode_manifest(manifest)) == manifest


@pytest.mark.parametrize(
    ("name", "size", "most", "said", "hint"),
    [
        ("batch", 33, 32, "33 rows; .* up to 32", "batch_size .* to 32, or export with --max-batch 33"),
        ("tokens", 65, 64, "65 tokens; .* up to 64", "cut rows to 64 tokens, or export with --max-tokens 65"),
        ("chunks", 9, 8, "9 chunks of positions; .* up to 8", "--max-batch or --max-tokens"),
        ("chunk", 65, 64, "65 positions in a chunk; .* up to 64", "--max-batch or --max-tokens"),
    ],
)
def test_a_batch_over_its_bound_is_named_with_the_bound(name: str, size: int, most: int, said: str, hint: str) -> None:
    check_bounds({name: most}, {name: most})
    check_bounds({name: size}, {})
    with pytest.raises(TrainingError, match=said) as caught:
        check_bounds({name: size}, {name: most})
    assert re.search(hint, caught.value.hint)


def test_a_plan_of_more_rows_than_the_graphs_take_is_refused_before_it_runs(leveled: Bundle) -> None:
    """ONNX Runtime takes any number. A backprop device runs as many rows at once as the graph takes."""
    bounded = changed(leveled.manifest, bounds={"batch": 16})
    assert largest_batch(leveled.manifest, "onnxruntime") is None
    check_rows(leveled.manifest, "onnxruntime", 4096)
    assert largest_batch(bounded, "onnxruntime") == 16
    check_rows(bounded, "onnxruntime", 16)
    with pytest.raises(TrainingError, match=r"17 rows; .* up to 16"):
        check_rows(bounded, "onnxruntime", 17)

    bundle = Bundle(Path(), bounded, leveled.sha256)

    def rows_at_once(stld: Stld) -> dict[int, int]:
        adapter = AdapterRef(BlobRef("0" * 64, 4), None, None)
        plan = BackpropPlan(
            job="job", job_seed=1, round=0, attempt=0, bundle_sha256=leveled.sha256, stld=stld, level=3,
            deadline_s=60.0, adapter=adapter, blob_url="http://server/blobs",
        )  # fmt: skip
        return check_plan(plan, bundle, None, "onnxruntime")

    assert rows_at_once(Stld(steps=2, batch_size=64)) == {1: 16, 2: 16, 3: 16}
    with pytest.raises(TrainingError, match=r"20 rows; .* up to 16"):
        rows_at_once(Stld(steps=2, batch_size=64, micro_batch_size=20))
