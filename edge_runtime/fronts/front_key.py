"""What a file of front activations belongs to: anything else in it, and its activations are not the ones wanted."""

from __future__ import annotations

import hashlib
import platform
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.engines.least_versions import installed_versions
from edge_runtime.values import Sha256, Strict

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.choose import Engines
    from edge_runtime.values import FloatVector

CACHE_VERSION = 1
Precision = Literal["float32", "float16"]


class FrontKey(Strict, frozen=True):
    """What the activations of a file depend on, beside a row's tokens.

    Attributes:
        version: version of the file's format.
        bundle_sha256: the bundle, and with it model, split graphs and tokenizer.
        split: index of the back block's first layer.
        front_sha256: hash of the front's trainable parameters, float32, little-endian.
        engine: runtime, its version, what it runs on and its threads: other ones give other last bits.
        machine: the processor's architecture.
        precision: in which floating-point numbers are kept.
    """

    version: int
    bundle_sha256: Sha256
    split: int
    front_sha256: Sha256
    engine: str
    machine: str
    precision: Precision

    def encode(self) -> bytes:
        """Return the key as JSON: equal keys give equal bytes."""
        return msgspec.json.encode(self)


def front_key(bundle: Bundle, split: int, front: FloatVector, engines: Engines, precision: Precision) -> FrontKey:
    """Return the key of a front at the given parameters.

    Args:
        bundle: the bundle.
        split: one of its splits.
        front: the front's trainable parameters, float32, (front size,).
        engines: what runs the graphs.
        precision: in which the activations are kept.

    Raises:
        ConfigError: the runtime is not installed.
    """
    versions = installed_versions(engines.runtime)
    threads = engines.operator_threads()
    return FrontKey(
        version=CACHE_VERSION,
        bundle_sha256=bundle.sha256,
        split=split,
        front_sha256=hashlib.sha256(front.astype("<f4", copy=False).data).hexdigest(),
        engine=f"{engines.name} {versions[engines.runtime]}, {threads} threads",
        machine=platform.machine(),
        precision=precision,
    )
