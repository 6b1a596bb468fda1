"""Identifies a tensor by the address of its data, whatever PEFT or torch.export call it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    import torch

Address = NewType("Address", int)


def address_of(tensor: torch.Tensor) -> Address:
    """Return the address of a tensor's data: equal for tied weights and for detached copies that share their data.

    It identifies the data only while some tensor keeps that data alive.
    """
    return Address(tensor.data_ptr())
