"""Loads one compiled library in a process of its own and prints what it found, as JSON: see doctor_natives.

A library that was built for another processor ends its process by a signal; this process is there to be ended.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edge_runtime.engines.child import answer

if TYPE_CHECKING:
    from collections.abc import Callable

DELEGATES = ("XnnpackBackend", "QnnBackend", "OpenvinoBackend", "CoreMLBackend")


def _numpy() -> dict[str, Any]:
    import numpy as np

    return {"version": np.__version__}


def _kernel() -> dict[str, Any]:
    from edge_runtime.perturbation.kernel import kernel_name, kernel_reason

    return {"kernel": kernel_name(), "reason": kernel_reason()}


def _tokenizers() -> dict[str, Any]:
    import tokenizers

    return {"version": tokenizers.__version__}


def _onnxruntime() -> dict[str, Any]:
    import onnxruntime as ort

    return {"version": ort.__version__, "delegates": ort.get_available_providers()}


def _executorch() -> dict[str, Any]:
    from edge_runtime.engines import executorch_build, executorch_library

    delegates = [name for name in DELEGATES if executorch_library.has_backend(name)]
    threads = int(executorch_library.load().covey_executorch_threads())
    return {"version": executorch_build.VERSION, "delegates": delegates, "threads": threads}


LOADERS: dict[str, Callable[[], dict[str, Any]]] = {
    "numpy": _numpy,
    "kernel": _kernel,
    "tokenizers": _tokenizers,
    "onnxruntime": _onnxruntime,
    "executorch": _executorch,
}


if __name__ == "__main__":
    answer(LOADERS[sys.argv[1]])
