"""From a part of the program to an ONNX file for ONNX Runtime, with weights, adapter and batch as inputs."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch

from export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from export.cut import Part

OPSET = 20
"""The first with Gelu as one operator; LayerNormalization is one since 17."""

_SYMBOLS = ("batch", "tokens")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' warnings and chatter; their errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def dimension_names(batch_values: dict[str, Any]) -> dict[Any, str]:
    """Return the names of the program's symbolic sizes, from the traced ``input_ids`` of shape (batch, tokens)."""
    return {size.node.expr: name for size, name in zip(batch_values["input_ids"].shape, _SYMBOLS, strict=True)}


def shape_of(value: Any, names: dict[Any, str]) -> list[int | str]:
    """Return a shape as the manifest writes it: numbers, and names of symbolic sizes."""
    return [
        names.get(size.node.expr, str(size)) if isinstance(size, torch.SymInt) else int(size) for size in value.shape
    ]


def write_onnx(
    part: Part, examples: list[torch.Tensor], names: dict[Any, str], bounds: dict[str, tuple[int, int]], path: Path
) -> None:
    """Convert a part and write the file.

    Args:
        part: the part; its inputs keep their names.
        examples: a tensor for each input.
        names: see dimension_names.
        bounds: smallest and largest value of each named size.
        path: where to write.

    Raises:
        ExportError: the converter failed.
    """
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    shapes = tuple(
        {index: dims[size] for index, size in enumerate(shape_of(item.value, names)) if isinstance(size, str)}
        for item in part.inputs
    )
    try:
        with quiet(), torch.no_grad():
            exported = torch.onnx.export(
                part.module,
                tuple(examples),
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=[item.name for item in part.inputs],
                output_names=part.outputs,
                opset_version=OPSET,
                verbose=False,
            )
            assert exported is not None  # noqa: S101 dynamo=True always returns a program
            exported.save(path)
    except (RuntimeError, ValueError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(
            f"the graph {path.name} cannot be converted to ONNX: {error}", "report the model and the versions"
        ) from error
