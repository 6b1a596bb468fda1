"""Tests the places of tensors: one name per base weight, and no new ones once the base weights are closed."""

from __future__ import annotations

import pytest
import torch

from edge_runtime.bundle.layout import lay_out
from export.bundle.weight_table import Place, WeightTable
from export.model.address import address_of

TRAINED, FROZEN, WEIGHT, LATE = (torch.full((2, 3), float(value)) for value in range(4))


def table() -> WeightTable:
    names = {address_of(TRAINED): "lora_B", address_of(FROZEN): "lora_A"}
    return WeightTable(names, lay_out({"lora_B": [2, 3]}, lambda _name: 0))


def test_a_tensor_has_one_place_whatever_its_names() -> None:
    places = table()
    assert places.place(TRAINED.detach(), "any.name") == Place("trainable", "lora_B")
    assert places.place(FROZEN, "any.name") == Place("frozen", "lora_A")
    assert places.place(WEIGHT, "first.base_layer.weight") == Place("weight", "first.weight")
    assert places.place(WEIGHT.detach(), "tied.weight") == Place("weight", "first.weight")
    assert places.trained == {address_of(TRAINED): "lora_B"}
    assert places.frozen_shapes == {"first.weight": [2, 3], "lora_A": [2, 3]}


def test_base_weights_are_those_that_graphs_read_before_closing() -> None:
    places = table()
    for tensor in (TRAINED, FROZEN, WEIGHT):
        places.place(tensor, "name")
    weights = places.close()
    assert list(weights.tensors) == ["name"]
    assert weights.parameters == WEIGHT.numel()
    assert places.place(WEIGHT, "other") == Place("weight", "name")
    with pytest.raises(RuntimeError, match="late is read by a graph"):
        places.place(LATE, "late")
