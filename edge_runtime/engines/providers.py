"""Execution providers of ONNX Runtime by the names that edge.toml has for them, and whether a session has taken them.

A name is ONNX Runtime's own in small letters, without its end: ``cuda`` is CUDAExecutionProvider. ONNX Runtime goes on
with the processor where it does not get what it was asked for; here that is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.manifest import Runtime

FLOAT32 = ("NVIDIA_TF32_OVERRIDE", "0")
"""A variable of the environment and its value that keep NVIDIA's libraries, TensorRT too, from rounding to TF32."""

CPU = "cpu"
CPU_ONLY = (CPU,)
"""The processor alone: what runs where nothing is configured."""

_END = "ExecutionProvider"
_NAME = re.compile(r"[a-z][a-z0-9]{0,31}")
_KEY = "execution_providers"


def short_name(provider: str) -> str:
    """Return the name in edge.toml of one of ONNX Runtime's providers: ``cuda`` of CUDAExecutionProvider."""
    return provider.removesuffix(_END).lower()


def check_provider_names(names: Sequence[str], engine: Runtime) -> None:
    """Check the providers of a configuration; whether they are installed is not looked at.

    Args:
        names: in the order in which they are asked for work.
        engine: the runtime; only ONNX Runtime has providers.

    Raises:
        ConfigError: there is none, one is there twice or misspelt, or another runtime has them.
    """
    if not names:
        raise ConfigError(
            f"{_KEY} is empty, and nothing could run", f'leave it out for the processor, or {_KEY} = ["cpu"]'
        )
    for name in names:
        if _NAME.fullmatch(name) is None:
            better = short_name(name)
            say = f'write "{better}"' if _NAME.fullmatch(better) else 'names are "cuda", "tensorrt", "cpu"'
            raise ConfigError(f"{_KEY} has {name!r}, which is no name of a provider", say)
    if len(set(names)) < len(names):
        raise ConfigError(f"{_KEY} names a provider twice: {', '.join(names)}", "name each once, the best first")
    if engine != "onnxruntime" and tuple(names) != CPU_ONLY:
        raise ConfigError(
            f"{_KEY} is of ONNX Runtime, and engine is {engine}", f'leave {_KEY} out, or set engine = "onnxruntime"'
        )


def onnx_names(names: Sequence[str], installed: Sequence[str]) -> list[str]:
    """Return ONNX Runtime's own names of providers.

    Args:
        names: as in edge.toml.
        installed: what ``onnxruntime.get_available_providers()`` says.

    Raises:
        ConfigError: one is not in the installed ONNX Runtime; the error has those that are, and what to do.
    """
    known = {short_name(provider): provider for provider in installed}
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(
            f"the installed ONNX Runtime has no execution provider {', '.join(missing)}, but {', '.join(known)}",
            _how_to_get(missing),
        )
    return [known[name] for name in names]


def provider_options(provider: str) -> dict[str, str]:
    """Return the options with which a provider multiplies in float32; ``provider``: ONNX Runtime's own name.

    NVIDIA's processors would otherwise round factors to 10 bits (TF32), and a scalar is a difference of two losses.
    """
    return {"use_tf32": "0"} if provider == "CUDAExecutionProvider" else {}


def check_taken(names: Sequence[str], taken: Sequence[str]) -> None:
    """Check that a session has the providers that it was asked for, in this order.

    Args:
        names: what was asked for, as in edge.toml.
        taken: what ``session.get_providers()`` says; ONNX Runtime adds the processor at the end.

    Raises:
        ConfigError: one is not there: its library, driver or device is missing.
    """
    found = [short_name(provider) for provider in taken]
    if found[: len(names)] == list(names):
        return
    missing = [name for name in names if name not in found] or list(names)
    raise ConfigError(
        f"ONNX Runtime does not start {', '.join(missing)}: it would run on {', '.join(found)} instead",
        f"{_how_to_start(missing)}; or take it out of {_KEY}",
    )


def refused_hint(names: Sequence[str], said: str) -> str | None:
    """Return what to do where a session cannot be made on providers; None: the providers are not the reason.

    Args:
        names: what was asked for, as in edge.toml.
        said: ONNX Runtime's own words.
    """
    words = said.lower()
    if "fallback to cpu ep has been explicitly disabled" in words:
        return f'the graph has parts that only the processor can run: add "cpu" at the end of {_KEY}'
    others = [name for name in names if name != CPU]
    signs = (*others, "executionprovider", "execution provider", "cudnn", "libcu")
    return _how_to_start(others) if others and any(sign in words for sign in signs) else None


def _how_to_get(missing: Sequence[str]) -> str:
    if {"cuda", "tensorrt"} & set(missing):
        how = "pip uninstall onnxruntime, then pip install onnxruntime-gpu; on a Jetson from NVIDIA's index"
    else:
        how = "install the build of ONNX Runtime that has it, in place of the one that is there"
    return f"{how}; or take {', '.join(missing)} out of {_KEY}"


def _how_to_start(missing: Sequence[str]) -> str:
    if {"cuda", "tensorrt"} & set(missing):
        return (
            "install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu was built for (JetPack brings them: "
            "sudo apt install nvidia-jetpack), and let the user into the groups video and render"
        )
    return "install its library and driver"
