"""The memory of a graph's values, by hand: what lives how long, what shares memory, named sizes, a Scan's body."""

from __future__ import annotations

import pytest
from onnx import TensorProto, ValueInfoProto, helper

from export.graphs.activations import peak_bytes

FLOAT = TensorProto.FLOAT


def values(**shapes: list[int | str]) -> dict[str, ValueInfoProto]:
    return {name: helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in shapes.items()}


def peak(nodes: list[tuple[str, str, str]], results: list[str], described: dict[str, ValueInfoProto]) -> int:
    made = [helper.make_node(kind, read.split(), [result]) for kind, read, result in nodes]
    return peak_bytes(made, results, described, {"batch": 2, "tokens": 5})


MADE = values(a=["batch", 10], b=["batch", 10], c=["batch", 10], d=["batch", 10])
SIZE = 4 * 2 * 10


@pytest.mark.parametrize(
    ("nodes", "results", "alive"),
    [
        ([("MatMul", "x w", "a"), ("MatMul", "a w", "b"), ("MatMul", "b w", "c")], ["c"], 2),
        ([("MatMul", "x w", "a"), ("MatMul", "a w", "b"), ("MatMul", "b w", "c"), ("Add", "a c", "d")], ["d"], 3),
        ([("MatMul", "x w", "a"), ("Tanh", "a", "b"), ("Tanh", "b", "c")], ["c"], 1),
        ([("MatMul", "x w", "a"), ("Tanh", "a", "b"), ("Mul", "a b", "c")], ["c"], 2),
        ([("MatMul", "x w", "a"), ("Reshape", "a s", "b"), ("MatMul", "b w", "c")], ["c"], 2),
        ([("MatMul", "x w", "a"), ("Reshape", "a s", "b"), ("MatMul", "b w", "c")], ["b", "c"], 2),
        ([("MatMul", "x w", "a"), ("Transpose", "a", "b"), ("MatMul", "b w", "c")], ["c"], 2),
        ([("MatMul", "x w", "a"), ("Transpose", "a", "b"), ("Tanh", "b", "c")], ["c"], 2),
        ([("MatMul", "x w", "a"), ("MatMul", "x w", "b")], ["b"], 1),
        ([("Transpose", "w", "a"), ("MatMul", "x a", "b")], ["b"], 1),
    ],
    ids=["chain", "kept", "in-place", "not-in-place", "reshaped", "result", "transposed", "copied", "unread", "weight"],
)
def test_values_that_are_alive_at_once(nodes: list[tuple[str, str, str]], results: list[str], alive: int) -> None:
    assert peak(nodes, results, MADE) == alive * SIZE


def test_named_sizes_are_numbers_and_products() -> None:
    described = values(a=["4*batch", "tokens"], b=["batch*tokens", 3])
    assert peak([("MatMul", "x w", "a"), ("MatMul", "a w", "b")], ["b"], described) == 4 * (8 * 5 + 10 * 3)


def test_the_body_of_a_scan_counts_while_it_runs() -> None:
    inner = helper.make_graph(
        [helper.make_node("MatMul", ["part", "w"], ["logits"]), helper.make_node("ReduceSum", ["logits"], ["loss"])],
        "body",
        inputs=[helper.make_tensor_value_info("part", FLOAT, [5, 4])],
        outputs=[helper.make_tensor_value_info("loss", FLOAT, [1])],
        value_info=[helper.make_tensor_value_info("logits", FLOAT, [5, 1000])],
    )
    scan = helper.make_node("Scan", ["parts"], ["losses"], body=inner, num_scan_inputs=1)
    assert peak_bytes([scan], ["losses"], values(losses=[8]), {}) == 4 * (8 + 5 * 1000 + 1)
