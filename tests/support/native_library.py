"""Builds the core for apps (edge_runtime/native) with CMake and calls it through ctypes, for the tests."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_double, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.data.batch import Batch
    from edge_runtime.protocol.step_rule import StepRule
    from edge_runtime.values import FloatVector

SOURCE = ROOT / "edge_runtime" / "native"
ABI = 1


def _tool(name: str) -> str | None:
    """Return the path of a program beside this Python, where pip installs cmake and ninja, or on PATH."""
    return shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def _json_folder() -> str | None:
    spec = importlib.util.find_spec("nlohmann_json")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    places = [Path(folder) / "include" for folder in folders] + [Path("/usr/include")]
    return next((str(place) for place in places if (place / "nlohmann" / "json.hpp").exists()), None)


def missing() -> str | None:
    """Return what the build lacks and how to install it; None where nothing is missing."""
    for name, hint in (
        ("cmake", "pip install cmake"),
        ("ninja", "pip install ninja"),
        ("c++", "apt-get install g++"),
    ):
        if _tool(name) is None:
            return f"no {name}: {hint}"
    return None if _json_folder() else "no nlohmann/json.hpp: pip install nlohmann-json"


needs_cmake = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def build(folder: Path, *options: str, target: str = "all") -> Path:
    """Configure and build the core; return the build folder."""
    environment = os.environ | {"CMAKE_MAKE_PROGRAM": str(_tool("ninja"))}
    commands = [
        [
            str(_tool("cmake")),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}",
            "-S",
            str(SOURCE),
            "-B",
            str(folder),
            f"-DCOVEY_JSON_INCLUDE_DIR={_json_folder()}",
            "-DCOVEY_WARNINGS_ARE_ERRORS=ON",
            *options,
        ],
        [str(_tool("cmake")), "--build", str(folder), "--target", target],
    ]
    for command in commands:
        result = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    return folder


class CError(Structure):
    """See covey.h, covey_error."""

    _fields_ = [("code", c_int32), ("what", c_char * 512), ("hint", c_char * 256)]


class CBatch(Structure):
    """See covey.h, covey_batch."""

    _fields_ = [(name, c_int64) for name in ("rows", "tokens", "chunks", "chunk")] + [
        (name, c_void_p) for name in ("input_ids", "attention_mask", "labels", "positions")
    ]


class CRule(Structure):
    """See covey.h, covey_rule."""

    _fields_ = [
        ("variant", c_int32),
        ("difference", c_int32),
        ("normalize", c_int32),
        ("front_perturbations", c_uint32),
        ("back_perturbations", c_uint32),
        ("eps", c_double),
        ("learning_rate", c_double),
        ("leave_one_out", c_int32),
        ("shared_directions", c_int32),
        ("seed_pool", c_uint32),
    ]


class CWork(Structure):
    """See covey.h, covey_work."""

    _fields_ = [
        ("job_seed", c_uint64),
        ("round", c_uint64),
        ("device", c_char_p),
        ("rule", CRule),
        ("mean_square", c_double),
        ("clip", c_double),
        ("noise_multiplier", c_double),
    ]


FRONT = ctypes.CFUNCTYPE(c_int32, c_void_p, POINTER(CBatch), POINTER(c_void_p))
BACK = ctypes.CFUNCTYPE(c_int32, c_void_p, c_void_p, POINTER(CBatch), POINTER(c_double))
DROP = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)


class CCallbacks(Structure):
    """See covey.h, covey_callbacks."""

    _fields_ = [
        ("context", c_void_p),
        ("front_size", c_uint64),
        ("back_size", c_uint64),
        ("front_workspace", c_void_p),
        ("back_workspace", c_void_p),
        ("front", FRONT),
        ("back", BACK),
        ("drop", DROP),
    ]


class CoreError(Exception):
    """A function of the core failed."""

    def __init__(self, error: CError) -> None:
        super().__init__(error.what.decode())
        self.code = error.code
        self.hint = error.hint.decode()


class Core:
    """The shared library. Functions are called by name; those that can fail raise CoreError."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        assert self.library.covey_abi() == ABI
        for name, result in (
            ("covey_bundle_sha256", c_char_p),
            ("covey_bundle_parameters", c_uint64),
            ("covey_adapter_sha256", c_char_p),
            ("covey_adapter_data", c_void_p),
            ("covey_round_scalars", POINTER(ctypes.c_float)),
            ("covey_rule_default", CRule),
            ("covey_rule_scalars_per_step", c_uint64),
        ):
            getattr(self.library, name).restype = result

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function whose last argument is an error.

        Raises:
            CoreError: the function failed.
        """
        error = CError()
        code = getattr(self.library, f"covey_{name}")(*arguments, byref(error))
        assert code == error.code
        if code:
            raise CoreError(error)

    def open(self, name: str, *arguments: Any) -> c_void_p:
        """Call a function that makes an object; return the object's handle."""
        handle = c_void_p()
        self.call(name, *arguments, byref(handle))
        return handle

    def replay(
        self, log: bytes, adapter: Path, out: Path, previous: Path | None = None, before: Path | None = None
    ) -> str:
        """Follow logs; return the new adapter's hash."""
        sha256 = ctypes.create_string_buffer(65)
        paths = [None if path is None else str(path).encode() for path in (adapter, previous, out, before)]
        self.call("replay", log, c_uint64(len(log)), *paths, sha256)
        return sha256.value.decode()


def c_rule(rule: StepRule) -> CRule:
    """Return the rule as covey_rule."""
    return CRule(
        ("nested", "clean").index(rule.variant),
        ("central", "forward").index(rule.difference),
        ("none", "rms", "std").index(rule.normalize),
        rule.front_perturbations,
        rule.back_perturbations,
        rule.eps,
        rule.learning_rate,
        rule.leave_one_out,
        rule.shared_directions,
        rule.seed_pool or 0,
    )


def c_batch(batch: Batch) -> CBatch:
    """Return the batch as covey_batch, which points into its arrays."""
    positions = getattr(batch, "positions", None)
    chunks = (0, 0) if positions is None else positions.shape
    arrays = (batch.input_ids, batch.attention_mask, batch.labels, positions)
    assert all(array is None or array.flags.c_contiguous for array in arrays)
    return CBatch(*batch.input_ids.shape, *chunks, *(None if a is None else a.ctypes.data for a in arrays))


class CallbackEngine:
    """Lets the core run on a Python engine, so that both sides see the same losses."""

    def __init__(self, core: Core, engine: Any, batch_of: Callable[[CBatch], Any] = lambda _batch: None) -> None:
        self.fails_with = 0
        self.boundaries: dict[int, Any] = {}
        self._core = core
        count = iter(range(1, 1 << 62))

        def front(_context: int, batch: Any, boundary: Any) -> int:
            key = next(count)
            self.boundaries[key] = engine.front(batch_of(batch.contents))
            boundary[0] = key
            return self.fails_with

        def back(_context: int, boundary: int, batch: Any, loss: Any) -> int:
            loss[0] = engine.back(self.boundaries[boundary], batch_of(batch.contents))
            return 0

        def drop(_context: int, boundary: int | None) -> None:
            if boundary is not None:
                del self.boundaries[boundary]

        front_workspace, back_workspace = engine.front_workspace, engine.back_workspace
        self.callbacks = CCallbacks(
            None,
            front_workspace.size,
            back_workspace.size,
            front_workspace.ctypes.data,
            back_workspace.ctypes.data,
            FRONT(front),
            BACK(back),
            DROP(drop),
        )
        self.handle = core.open("engine_callbacks", byref(self.callbacks))

    def close(self) -> None:
        """Close the core's engine."""
        self._core.library.covey_engine_close(self.handle)


def run_round(
    core: Core, engine: c_void_p, theta: FloatVector, work: CWork, batches: list[CBatch]
) -> tuple[FloatVector, FloatVector, list[float]]:
    """Run a round's steps on the core; return scalars, the local model and each step's loss."""
    handle = core.open("round_open", engine, c_void_p(theta.ctypes.data), byref(work))
    try:
        losses = []
        for batch in batches:
            loss = c_double()
            core.call("round_step", handle, byref(batch), byref(loss))
            losses.append(loss.value)
        count = c_uint64()
        pointer = core.library.covey_round_scalars(handle, byref(count))
        scalars = np.ctypeslib.as_array(pointer, (count.value,)).copy()
        local = np.empty_like(theta)
        core.library.covey_round_local_model(handle, c_void_p(local.ctypes.data))
        return scalars, local, losses
    finally:
        core.library.covey_round_close(handle)


def run_mutations(program: Path, *arguments: object) -> dict[str, int]:
    """Run tests/native/mutate.cpp; return its counts: taken, refused and wrong."""
    result = subprocess.run(
        [str(program), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"ASAN_OPTIONS": "allocator_may_return_null=1:detect_leaks=1"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    counts: dict[str, int] = json.loads(result.stdout)
    return counts


def write(path: Path, theta: FloatVector) -> Path:
    """Write an adapter file; return its path."""
    path.write_bytes(theta.tobytes())
    return path
