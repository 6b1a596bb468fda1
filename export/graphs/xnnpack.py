"""Delegates matrix products whose weights are inputs to XNNPACK, and compiles each kind of block once.

XNNPACK multiplies any two matrices, but ExecuTorch's exporter delegates only linear layers and three-dimensional bmm to
it; the rest runs on portable kernels, 29 times slower. So all other products become one operator of Covey's, which
XNNPACK gets as its batch matrix product, four-dimensional ones included.

The exporter is also made faster. It runs 17 passes over each delegated block. Most are for quantisation and
convolutions, and one compiles a model of its own to look for its pattern: together more than half of the time. The
blocks of a transformer's layers are alike and, with weights as inputs, equal, so that each kind is compiled once per
process. For every delegated block the exporter copies the whole graph, only to sort its nodes; here they are sorted in
place. And it decomposes a program three times, each time by tracing it, where once, or never, is enough.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import torch
from executorch.backends.transforms.remove_getitem_op import RemoveGetItemPass
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack._passes import XNNPACKPassManager, XNNPACKRemoveCloneOpsTransform
from executorch.backends.xnnpack._passes.fuse_activation_pass import FuseActivationPass
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor, register_node_visitor
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.config.generic_node_configs import (
    BMMConfig,
    GenericNodePartitionerConfig,
    UpsampleBilinear2dConfig,
)
from executorch.backends.xnnpack.partition.config.quant_affine_configs import (
    ChooseQParamsAffineConfig,
    DeQuantizeAffineConfig,
    QuantizeAffineConfig,
)
from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import XNNBatchMatrixMultiply, XNode
from executorch.backends.xnnpack.utils.utils import get_input_node
from executorch.exir import lowered_backend_module
from executorch.exir.backend.partitioner import PartitionResult
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.graph_module import get_control_flow_submodules
from executorch.exir.passes.memory_format_ops_pass import DimOrderOpsRevertPass
from executorch.exir.tracer import _default_decomposition_table
from torch import fx
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult
from torch.library import Library, impl, register_fake

from export.errors import ExportError
from export.graphs.descriptions import describe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

aten = torch.ops.aten
_LIBRARY = Library("covey", "DEF")
_LIBRARY.define("product(Tensor a, Tensor b, bool transposed) -> Tensor")
_TRANSPOSE_B = 1
"""XNNPACK's XNN_FLAG_TRANSPOSE_B."""


def _product(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> torch.Tensor:
    """Multiply matrices with equal leading sizes: (…, m, k) by (…, k, n), or by (…, n, k) if ``transposed``."""
    return torch.matmul(a, b.transpose(-1, -2) if transposed else b)


def _product_of_fakes(a: torch.Tensor, b: torch.Tensor, transposed: bool) -> torch.Tensor:
    return a.new_empty((*a.shape[:-1], b.shape[-2 if transposed else -1]))


impl(_LIBRARY, "product", "CompositeExplicitAutograd")(_product)
register_fake("covey::product", lib=_LIBRARY)(_product_of_fakes)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Compute attention without PyTorch's treatment of rows that attend to nothing, which no exported model has.

    The parameters are those of aten.scaled_dot_product_attention, whose decomposition this is.

    Raises:
        ExportError: dropout, is_causal or enable_gqa, which no exported architecture uses.
    """
    if dropout_p or is_causal or enable_gqa:
        what = "ExecuTorch cannot run attention with dropout, is_causal or enable_gqa"
        raise ExportError(what, "export with --runtime onnx")
    scores = torch.ops.covey.product(query * (query.shape[-1] ** -0.5 if scale is None else scale), key, True)
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.where(attn_mask, 0.0, torch.finfo(query.dtype).min)
        scores = scores + attn_mask
    return torch.ops.covey.product(torch.softmax(scores, -1), value, False)


def _mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.ops.covey.product(a, b, False)


def _addmm(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, beta: float = 1, alpha: float = 1) -> torch.Tensor:
    made = torch.ops.covey.product(a, b, False)
    return (bias if beta == 1 else bias * beta) + (made if alpha == 1 else made * alpha)


PRODUCTS = {
    aten.scaled_dot_product_attention.default: _attention,
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.bmm.default: _mm,
}
"""Decomposition table of the products that the exporter would not delegate to XNNPACK as they are."""


class _ProductConfig(GenericNodePartitionerConfig):
    target_name = "product.default"

    def supported_precision_types(self) -> list[ConfigPrecisionType]:
        return [ConfigPrecisionType.FP32]


@register_node_visitor
class _ProductVisitor(NodeVisitor):
    target = "covey.product.default"

    def define_node(self, node: fx.Node, xnn_graph: Any, vals_to_ids: dict[fx.Node, int], debug_handle: int) -> None:
        self.define_nodes_tensor_inputs_outputs(node, xnn_graph, vals_to_ids)
        a, b = (vals_to_ids[get_input_node(node, index)] for index in range(2))
        flags = _TRANSPOSE_B if node.args[2] else 0
        product = XNNBatchMatrixMultiply(input1_id=a, input2_id=b, output_id=vals_to_ids[node], flags=flags)
        xnn_graph.xnodes.append(XNode(xnode_union=product, debug_handle=debug_handle))


_LEFT_OUT = {
    BMMConfig,
    UpsampleBilinear2dConfig,
    QuantizeAffineConfig,
    DeQuantizeAffineConfig,
    ChooseQParamsAffineConfig,
}
_PASSES = [XNNPACKRemoveCloneOpsTransform, DimOrderOpsRevertPass, FuseActivationPass, RemoveGetItemPass]
"""The exporter's passes that change float32 graphs without convolutions; the others are left out."""


class _Partitioner(XnnpackPartitioner):
    """Also delegates products in the bodies of scans; the exporter's own partitioner sees the outermost graph alone."""

    def partition(self, exported_program: Any) -> PartitionResult:
        result = super().partition(exported_program)
        tags = dict(result.partition_tags)
        for _, body, _ in get_control_flow_submodules(result.tagged_exported_program.graph_module):
            for node in body.graph.nodes:
                if getattr(node.target, "__name__", "") in ("aten.linear.default", "covey.product.default"):
                    node.meta["delegation_tag"] = tag = f"scan_{len(tags)}"
                    tags[tag] = self.delegation_spec
        return PartitionResult(result.tagged_exported_program, tags)


def partitioner() -> XnnpackPartitioner:
    """Return a partitioner that delegates linear layers whose weights are inputs, and Covey's products."""
    configs = [config for config in ALL_PARTITIONER_CONFIGS if config not in _LEFT_OUT]
    return _Partitioner(
        configs=[*configs, _ProductConfig],
        config_precisions=ConfigPrecisionType.FP32,
        force_non_static_weights_for_f32_linear=True,
    )


class _FewPasses(XNNPACKPassManager):
    def __init__(self, exported_program: Any, passes: Sequence[Any] | None = None) -> None:
        super().__init__(exported_program, list(passes or _PASSES))


_COPIES = {exir_ops.edge.aten.clone.default, exir_ops.edge.dim_order_ops._clone_dim_order.default}  # noqa: SLF001


def without_clones(module: fx.GraphModule) -> PassResult:
    """Remove copies: every tensor is contiguous in ExecuTorch, and a block of copies alone cannot be delegated."""
    for node in list(module.graph.nodes):
        if node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return PassResult(module, modified=True)


def sort_nodes(module: fx.GraphModule) -> fx.GraphModule:
    """Move every node behind those that it reads, in place; the module's code is not generated again."""
    ordered: list[fx.Node] = []
    placed: set[fx.Node] = set()
    for last in module.graph.nodes:
        waiting = [last] if last.op != "output" else []
        while waiting:
            node = waiting[-1]
            if node in placed:
                waiting.pop()
            elif missing := [read for read in node.all_input_nodes if read not in placed]:
                waiting += missing
            else:
                placed.add(node)
                ordered.append(waiting.pop())
    output = module.graph.output_node()
    for node in ordered:
        output.prepend(node)
    return module


_compiled: dict[str, Any] = {}


@contextlib.contextmanager
def fast_compiler() -> Iterator[None]:
    """Compile delegated blocks with only the passes that they need, and equal blocks once, while the context lasts.

    It patches internals of the exporter, in the one version that Covey supports (engines/executorch_build.py).
    """
    backend, manager = xnnpack_preprocess.XnnpackBackend, xnnpack_preprocess.XNNPACKPassManager
    preprocess, sort, decompose = (
        backend.preprocess,
        lowered_backend_module.legalize_graph,
        ExportedProgram.run_decompositions,
    )

    def once(edge_program: Any, compile_specs: Any) -> Any:
        key = describe(edge_program)
        if key not in _compiled:
            _compiled[key] = preprocess(edge_program, compile_specs)
        return _compiled[key]

    def where_needed(program: Any, table: Any = None) -> Any:
        return program if table is not None and not _has_any(program.graph_module, table) else decompose(program, table)

    xnnpack_preprocess.XNNPACKPassManager = _FewPasses
    backend.preprocess = staticmethod(once)
    lowered_backend_module.legalize_graph = sort_nodes
    ExportedProgram.run_decompositions = where_needed
    try:
        yield
    finally:
        backend.preprocess, xnnpack_preprocess.XNNPACKPassManager = staticmethod(preprocess), manager
        lowered_backend_module.legalize_graph, ExportedProgram.run_decompositions = sort, decompose


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Decompose a program once into what XNNPACK and ExecuTorch take; the exporter would trace it three times."""
    table = _default_decomposition_table()
    for operator in partitioner().ops_to_not_decompose(program)[0]:
        table.pop(operator, None)
    table.update(PRODUCTS)
    return program.run_decompositions(table) if _has_any(program.graph_module, table) else program


def _has_any(module: fx.GraphModule, table: Any) -> bool:
    """Return whether a graph, or the body of one of its scans, has an operation of a decomposition table.

    Reading a size does not count: PyTorch's tables list it, but it stays as it is.
    """
    parts = (module, *(body for _, body, _ in get_control_flow_submodules(module)))
    found = {node.target for part in parts for node in part.graph.nodes if node.op == "call_function"}
    return any(target in table for target in found - {aten.sym_size.int})
