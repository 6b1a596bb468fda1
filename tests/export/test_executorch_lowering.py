"""Tests lowering: no product on slow kernels, no equal piece lowered twice, weights in ExecuTorch's own file format."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import fx

from edge_runtime.files.tensor_file import map_tensors
from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the executorch package: pip install covey[executorch]"
)


class Call(torch.nn.Module):
    """One operation on the inputs."""

    def __init__(self, operation: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.operation(*inputs)


@pytest.mark.parametrize(
    ("operation", "inputs"),
    [
        pytest.param(torch.mm, (torch.ones(2, 3).double(), torch.ones(3, 2).double()), id="doubles"),
        pytest.param(torch.matmul, (torch.ones(2, 4, 3).long(), torch.ones(2, 3, 4).long()), id="integers"),
        pytest.param(torch.conv2d, (torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3)), id="convolution"),
    ],
)
def test_a_product_left_to_portable_kernels_is_refused(
    operation: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...]
) -> None:
    """XNNPACK multiplies float32 alone, and convolves with constant weights alone; anything else must be refused."""
    from export.graphs.executorch_pieces import lower

    with pytest.raises(ExportError, match=r"ExecuTorch would run .*(product|conv).* on slow portable kernels"):
        lower(torch.export.export(Call(operation), inputs))


class Scale(torch.nn.Module):
    """A constant times the input."""

    def __init__(self, factor: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("factor", factor)
        self.factor: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def test_constants_of_any_sizes_are_described_by_their_values() -> None:
    """Constants without dimensions, which DeBERTa has, are described too."""
    from export.graphs.descriptions import describe

    factors = [torch.tensor(3), torch.tensor(4), torch.tensor([3]), torch.tensor(3.0), torch.tensor(True)]
    described = [describe(torch.export.export(Scale(factor), (torch.ones(2),))) for factor in factors]
    assert len(set(described)) == len(factors)
    assert describe(torch.export.export(Scale(torch.tensor(3)), (torch.ones(2),))) == described[0]


def test_a_product_that_xnnpack_takes_is_lowered() -> None:
    from export.graphs.executorch_pieces import lower

    made = lower(torch.export.export(Call(torch.mm), (torch.ones(2, 3), torch.ones(3, 2))))
    assert made.delegates == 1
    assert not any("product" in name or "mm" in name for name in made.portable)


def scaled(factor: float) -> fx.GraphModule:
    graph = fx.Graph()
    made = graph.call_function(torch.ops.aten.mul.Tensor, (graph.placeholder("weight"), factor))
    graph.output((graph.call_function(torch.ops.aten.add.Tensor, (made, graph.placeholder("batch_rows"))),))
    return fx.GraphModule(torch.nn.Module(), graph)


def test_what_was_lowered_is_not_lowered_again(tmp_path: Path) -> None:
    """An equal piece with other weights comes from the cache; one with another constant, size or bound does not."""
    from export.graphs.executorch_pieces import Piece, PieceSizes, lower_piece

    def lowered(factor: float = 2.0, most: int = 4, wide: int = 3, value: float = 0.0) -> Any:
        examples = {"weight": torch.full((wide,), value), "batch_rows": torch.full((2, wide), value)}
        traced = torch.export.export(
            scaled(1.0), tuple(examples.values()), dynamic_shapes=(None, {0: torch.export.Dim("batch", max=most)})
        )
        fakes = {node.name: node.meta["val"] for node in traced.graph.nodes if node.op == "placeholder"}
        names = {fakes["batch_rows"].shape[0].node.expr: "batch"}
        made = Piece(scaled(factor), list(examples))
        return lower_piece(made, examples, PieceSizes(fakes, names, {"batch": (1, most)}), tmp_path)

    first, again = lowered(), lowered(value=1.0)
    assert (first.cached, again.cached) == (False, True)
    assert (again.data, again.portable, again.delegates) == (first.data, first.portable, first.delegates)
    assert not any(lowered(**other).cached for other in ({"factor": 3.0}, {"most": 5}, {"wide": 4}))
    next(path for path in tmp_path.iterdir() if path.read_bytes().endswith(first.data)).write_bytes(b"half a fi")
    assert not lowered().cached


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_an_equal_export_lowers_nothing(tiny_export: Callable[..., Bundle], tmp_path: Path) -> None:
    """A whole export with another adapter of the same rank and other label names takes every graph from the cache."""
    from export.bundle.bundle_writer import export_bundle
    from export.bundle.options import ExportOptions
    from export.model.lora import DEFAULT_TARGETS
    from export.model.options import LoraOptions, TaskOptions
    from export.source.folder import look_at

    first = tiny_export("bert", splits=(2,), levels=(1,), runtimes=("onnxruntime", "executorch"))
    folder, told = look_at(first.path.parents[1] / "models" / "bert"), []
    task = TaskOptions("classify-head", ["no", "yes"], None, None, 32, None, 3.0, None)
    lora = LoraOptions(4, 8.0, DEFAULT_TARGETS[folder.model_type], None, ["B"], seed=2)
    both = ("onnxruntime", "executorch")
    options = ExportOptions(task, lora, [2], levels=(1,), runtimes=both, max_batch=16)
    second = export_bundle(folder, options, tmp_path / "bundle", progress=told.append).bundle
    files = [graph.file for graph in first.manifest.graphs if graph.runtime == "executorch"]
    assert len(files) == 4
    for file in files:
        assert any(line.startswith(f"{file}: taken from the cache") for line in told), told
        assert first.file(file).read_bytes() == second.file(file).read_bytes()


def test_weights_in_executorchs_own_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The file holds every tensor that an input's ``source`` can name, bit for bit."""
    from executorch.exir._serialize._cord import Cord
    from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

    from export.bundle.flat_tensors import write_flat_tensors

    path = tmp_path / "weights.ptd"
    assert write_flat_tensors(tiny_bundle, path) == path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    read = FlatTensorSerializer().deserialize(Cord(path.read_bytes()))
    manifest = tiny_bundle.manifest
    known = map_tensors(tiny_bundle.file(manifest.weights_file)) | map_tensors(tiny_bundle.file(manifest.adapter_file))
    assert {
        tensor.source
        for graph in manifest.graphs
        for tensor in graph.inputs
        if tensor.role not in ("batch", "boundary")
    } <= set(read.named_data)
    for name, tensor in known.items():
        entry = read.named_data[name]
        assert entry.tensor_layout is not None
        assert entry.tensor_layout.sizes == list(tensor.shape)
        data = np.frombuffer(bytes(read.buffers[entry.buffer_index]), dtype=np.float32)
        assert np.array_equal(data.reshape(tensor.shape), tensor)


def test_ptd_needs_executorch(capsys: pytest.CaptureFixture[str]) -> None:
    from server.cli import main

    command = ["export", "nowhere", "--task", "classify-head", "--labels", "a,b", "--split", "1", "--out", "nowhere"]
    assert main([*command, "--ptd", "weights.ptd"]) == 3
    assert "--ptd is about ExecuTorch" in capsys.readouterr().err
