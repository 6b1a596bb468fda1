"""Tries the configured execution providers in a child process, with a graph of one product: before any work is taken.

An idle device does not hold ONNX Runtime in its memory, and a driver that crashes ends the child.
"""

from __future__ import annotations

import base64
import sys
from typing import TYPE_CHECKING, Any

from edge_runtime.engines.child import Patience, answer, run_child, say_doing
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from edge_runtime.engines.choose import Engines

_PATIENCE = Patience(limit_s=600.0)
"""TensorRT builds an engine when it is first started; a small board needs a minute for it."""

_PRODUCT = base64.b64decode(
    "CAg6QAoRCgF4CgF4EgF5IgZNYXRNdWwSAWdaEwoBeBIOCgwIARIICgIIAgoCCAJiEwoBeRIOCgwIARIICgIIAgoCCAJCAhAR"
)
"""An ONNX model (IR 8, opset 17): y = MatMul(x, x), float32, 2 × 2."""


def try_providers(engines: Engines, patience: Patience = _PATIENCE) -> None:
    """Check that the execution providers are installed, start, and multiply; the processor alone is not tried.

    Args:
        engines: the runtime and its providers; this process does not load it.
        patience: how long the child may take.

    Raises:
        ConfigError: one is missing, or does not start, or ends its process, or gives another product.
        StorageError: the child cannot be started.
    """
    if engines.providers == CPU_ONLY or engines.runtime != "onnxruntime":
        return
    names = ", ".join(engines.providers)
    found = run_child(__name__, ",".join(engines.providers), doing=f"trying {names}", patience=patience)
    if found.what:
        raise ConfigError(found.what, found.hint)


def _try(providers: tuple[str, ...]) -> dict[str, Any]:
    say_doing("loading onnxruntime")
    import numpy as np  # noqa: PLC0415 the child says what it loads before it loads it

    from edge_runtime.engines.onnx_engine import make_session  # noqa: PLC0415

    say_doing(f"starting {', '.join(providers)}")
    try:
        session = make_session(_PRODUCT, 1, providers=providers)
    except BundleError as error:  # this graph is Covey's own, and every ONNX Runtime loads it
        raise ConfigError(error.what, "install ONNX Runtime again: pip install --force-reinstall") from error
    given = np.array([[1, 2], [3, 4]], dtype=np.float32)
    say_doing(f"multiplying on {', '.join(providers)}")
    product = session.run(None, {"x": given})[0]
    if not np.allclose(product, given @ given, rtol=1e-2):
        raise ConfigError(
            f"{', '.join(providers)} multiplies wrongly: {product.tolist()}",
            "do not train on this machine's accelerator",
        )
    return {"providers": list(session.get_providers())}


if __name__ == "__main__":
    answer(lambda: _try(tuple(sys.argv[1].split(","))))
