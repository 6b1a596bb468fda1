"""ExecuTorch through a C interface (covey_executorch.h) and ctypes: graphs as objects, codes as exceptions.

Importing this module loads nothing. ExecuTorch's log lines go to this module's logger.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.engines.executorch_build import library
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.host.threads import usable_threads

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.values import Tensor

_LOG = logging.getLogger(__name__)
_ABI = 1
_MAX_RANK = 16
_DTYPES: dict[int, np.dtype[Any]] = {
    3: np.dtype(np.int32),
    4: np.dtype(np.int64),
    6: np.dtype(np.float32),
    11: np.dtype(np.bool_),
}
# Lines at level I are about every load; what matters to a user comes as an exception.
_LEVELS = {"D": logging.DEBUG, "I": logging.DEBUG, "E": logging.INFO, "F": logging.ERROR}
_Log = ctypes.CFUNCTYPE(None, ctypes.c_char, ctypes.c_char_p, ctypes.c_char_p)


class ExecutorchError(Exception):
    """ExecuTorch reported an error.

    Attributes:
        code: ExecuTorch's code, or 1000 where ExecuTorch tried to end the process.
        name: the code's name, as ``InvalidProgram``.
        reason: what ExecuTorch logged.
    """

    def __init__(self, code: int, name: str, reason: str) -> None:
        super().__init__(f"{name} (0x{code:x}): {reason}")
        self.code, self.name, self.reason = code, name, reason


class _TensorInfo(ctypes.Structure):
    _fields_ = (("dtype", ctypes.c_int32), ("rank", ctypes.c_uint32), ("sizes", ctypes.c_int64 * _MAX_RANK))


def _log_line(level: bytes, where: bytes, message: bytes) -> None:
    text = message.decode(errors="replace")
    _LOG.log(_LEVELS.get(level.decode(), logging.DEBUG), "%s %s", where.decode(errors="replace"), text)


_on_log = _Log(_log_line)
"""Kept for as long as the process lives: the library calls it."""


@functools.cache
def load() -> Any:  # noqa: ANN401 a ctypes library
    """Load the library; compile it first if necessary.

    Raises:
        ConfigError: the library is not available; the hint says what to install.
    """
    with _loading:
        path = library()
        try:
            loaded = ctypes.CDLL(str(path))
            abi = loaded.covey_executorch_abi()
        except (OSError, AttributeError) as error:
            raise ConfigError(
                f"the ExecuTorch engine's library does not load: {error}", f"remove {path.parent} and try again"
            ) from error
        if abi != _ABI:
            raise ConfigError(f"{path} has interface {abi}, not {_ABI}", f"remove {path.parent} and try again")
        pointer, size, index = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
        for name, result, arguments in (
            ("error", ctypes.c_char_p, []),
            ("code_name", ctypes.c_char_p, [ctypes.c_int32]),
            ("set_log", None, [_Log]),
            ("set_threads", ctypes.c_int32, [index]),
            ("threads", index, []),
            ("has_backend", ctypes.c_int32, [ctypes.c_char_p]),
            ("open_bytes", ctypes.c_int32, [pointer, size, ctypes.POINTER(pointer)]),
            ("close", None, [pointer]),
            ("inputs", index, [pointer]),
            ("outputs", index, [pointer]),
            ("input", ctypes.c_int32, [pointer, index, ctypes.POINTER(_TensorInfo)]),
            ("bind", ctypes.c_int32, [pointer, index, pointer, ctypes.POINTER(ctypes.c_int64), index]),
            ("run", ctypes.c_int32, [pointer]),
            ("output", ctypes.c_int32, [pointer, index, ctypes.POINTER(_TensorInfo), ctypes.POINTER(pointer)]),
        ):
            function = getattr(loaded, f"covey_executorch_{name}")
            function.restype, function.argtypes = result, arguments
        loaded.covey_executorch_set_log(_on_log)
        return loaded


_loading = threading.Lock()


def _check(code: int) -> None:
    if code != 0:
        loaded = load()
        reason = loaded.covey_executorch_error().decode(errors="replace")
        raise ExecutorchError(code, loaded.covey_executorch_code_name(code).decode(), reason)


def set_threads(threads: int) -> int:
    """Set the threads of one operator, for the whole process; 0: one for each fast core. Return the number.

    With 0 there are no more than may run at once (host/threads.py): ExecuTorch itself counts the machine's cores.
    The number cannot change while graphs are open: a warning is logged, and they keep their threads.
    """
    try:
        _check(load().covey_executorch_set_threads(threads))
        if threads == 0 and load().covey_executorch_threads() > (most := usable_threads().count):
            _check(load().covey_executorch_set_threads(most))
    except ExecutorchError as error:
        _LOG.warning("ExecuTorch stays at %d threads: %s", load().covey_executorch_threads(), error.reason)
    return threads_now()


def threads_now() -> int:
    """Return the threads that one operator has in this process."""
    return int(load().covey_executorch_threads())


def has_backend(name: str) -> bool:
    """Return whether a delegate such as ``XnnpackBackend`` is available."""
    return bool(load().covey_executorch_has_backend(name.encode()))


class GraphFile:
    """An open ``.pte``, mapped; inputs and outputs by their position. For one thread at a time.

    Args:
        path: the file. The caller has checked the hash of ``data``, because ExecuTorch trusts its input.
        data: the file's mapping; None: map it.

    Raises:
        ExecutorchError: ExecuTorch cannot load it.
        BundleError: the file cannot be read.
    """

    def __init__(self, path: Path, data: mmap.mmap | None = None) -> None:
        self._library = load()
        self._handle = ctypes.c_void_p()
        self._file = map_file(path) if data is None else data
        self._data = np.frombuffer(self._file, dtype=np.uint8)
        self._bound: dict[int, Tensor] = {}
        opened = self._library.covey_executorch_open_bytes(
            self._data.ctypes.data, self._data.size, ctypes.byref(self._handle)
        )
        _check(opened)
        self.inputs: int = self._library.covey_executorch_inputs(self._handle)
        self.outputs: int = self._library.covey_executorch_outputs(self._handle)
        self._infos = [self._info(index) for index in range(self.inputs)]

    def __del__(self) -> None:
        """Close the graph."""
        if getattr(self, "_handle", None):
            self._library.covey_executorch_close(self._handle)
            self._handle = ctypes.c_void_p()

    def _info(self, index: int) -> tuple[int, tuple[int, ...]]:
        info = _TensorInfo()
        _check(self._library.covey_executorch_input(self._handle, index, ctypes.byref(info)))
        return info.dtype, tuple(info.sizes[: info.rank])

    def input(self, index: int) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
        """Return an input's element type (None: one that Covey does not use) and its largest sizes."""
        dtype, sizes = self._infos[index]
        return _DTYPES.get(dtype), sizes

    def bind(self, index: int, array: Tensor) -> None:
        """Bind an input to a contiguous array of the input's element type; the array is kept, not copied.

        Raises:
            ExecutorchError: its sizes are not allowed.
            TypeError: it is of another element type, or not contiguous.
        """
        dtype = self.input(index)[0]
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise TypeError(f"input {index} must be a contiguous array of {dtype}, not {array.dtype}")
        sizes = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        _check(self._library.covey_executorch_bind(self._handle, index, array.ctypes.data, sizes, array.ndim))
        self._bound[index] = array

    def run(self) -> list[Tensor]:
        """Run the graph; return its outputs, as copies, because the next run reuses ExecuTorch's memory.

        Raises:
            ExecutorchError: it failed, or an input is not bound.
        """
        _check(self._library.covey_executorch_run(self._handle))
        made = []
        for index in range(self.outputs):
            info, pointer = _TensorInfo(), ctypes.c_void_p()
            _check(
                self._library.covey_executorch_output(self._handle, index, ctypes.byref(info), ctypes.byref(pointer))
            )
            array: Tensor = np.empty(tuple(info.sizes[: info.rank]), dtype=_DTYPES[info.dtype])
            ctypes.memmove(array.ctypes.data, pointer, array.nbytes)
            made.append(array)
        return made


def map_file(path: Path) -> mmap.mmap:
    """Map a file for reading.

    Raises:
        BundleError: it cannot be read, or is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"cannot read {path}: {error}", "fetch the bundle again, or re-export it with covey export"
        ) from error
