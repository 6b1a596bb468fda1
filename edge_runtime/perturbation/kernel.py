"""Chooses the code that perturbs: the compiled kernel if there is one, else NumPy. Both give the same bits.

The environment variable COVEY_KERNEL forces the choice (``native`` or ``numpy``); it is read at first use.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edge_runtime.errors import ConfigError
from edge_runtime.perturbation import native_kernel, numpy_kernel

if TYPE_CHECKING:
    from edge_runtime.perturbation.native_kernel import Perturb

VARIABLE = "COVEY_KERNEL"


@dataclass(frozen=True)
class Kernel:
    """The chosen kernel.

    Attributes:
        name: ``native`` or ``numpy``.
        reason: why, as half a sentence.
        perturb: a function with the arguments of numpy_kernel.perturb.
    """

    name: Literal["native", "numpy"]
    reason: str
    perturb: Perturb


@functools.cache
def kernel() -> Kernel:
    """Return the chosen kernel; it is chosen once per process.

    Raises:
        ConfigError: COVEY_KERNEL has another value, or asks for a compiled kernel that is not there.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "native", "numpy"):
        raise ConfigError(f"{VARIABLE} is {wanted!r}", "set it to native or numpy, or to nothing")
    if wanted == "numpy":
        return Kernel("numpy", f"{VARIABLE} asks for it", numpy_kernel.perturb)
    try:
        perturb = native_kernel.load()
    except native_kernel.KernelMissingError as error:
        if wanted == "native":
            raise ConfigError(
                f"{VARIABLE} asks for the compiled kernel, which cannot be used: {error}",
                f"install a C compiler and then Covey again, or unset {VARIABLE}: NumPy gives the same bits, slower",
            ) from error
        return Kernel("numpy", f"no compiled kernel: {error}", numpy_kernel.perturb)
    return Kernel("native", f"{VARIABLE} asks for it" if wanted else "it was built and gives NumPy's bits", perturb)


def kernel_name() -> Literal["native", "numpy"]:
    """Return which kernel is used.

    Raises:
        ConfigError: see kernel.
    """
    return kernel().name


def kernel_reason() -> str:
    """Return why this kernel is used, as half a sentence.

    Raises:
        ConfigError: see kernel.
    """
    return kernel().reason
