"""Loads and runs graphs on ONNX Runtime, for the engines of bundle_engine.py and bundle_training.py.

Weights are bound as inputs that point into the mapped file. All sessions of the process share one allocator, so that a
run of front and back takes no more memory than the larger of the two.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import onnxruntime as ort

from edge_runtime.engines.providers import (
    CPU,
    CPU_ONLY,
    FLOAT32,
    check_taken,
    onnx_names,
    provider_options,
    refused_hint,
)
from edge_runtime.errors import BundleError, ConfigError, TrainingError
from edge_runtime.files.tensor_file import forget_pages
from edge_runtime.host.threads import threads_or_usable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Graph, Runtime
    from edge_runtime.data.batch import Batch
    from edge_runtime.engines.bundle_engine import Boundary
    from edge_runtime.values import Tensor


@functools.cache
def _share_allocator() -> None:
    """Register the allocator that every session of this process uses; it grows by what is asked for."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    grow_as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory, grow_as_requested)


def make_session(
    model: str | bytes,
    threads: int,
    options: ort.SessionOptions | None = None,
    providers: Sequence[str] = CPU_ONLY,
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        model: an ONNX file, or what is in one.
        threads: threads of one operator; 0: as many as may run at once (host/threads.py).
        options: settings to start from, for example those of a profile; the engine's own settings are added to them.
        providers: execution providers, as in edge.toml; none is used that is not among them.

    Raises:
        BundleError: ONNX Runtime cannot load it.
        ConfigError: a provider is not installed, does not start, or cannot run the whole graph.
    """
    wanted = onnx_names(providers, ort.get_available_providers())
    _share_allocator()
    options = options or ort.SessionOptions()
    options.intra_op_num_threads = threads_or_usable(threads)
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # patterns are kept for each shape: batches have many
    options.add_session_config_entry("session.use_env_allocators", "1")
    os.environ.setdefault(*FLOAT32)
    if CPU not in providers:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(
            model,
            options,
            providers=wanted,
            provider_options=[provider_options(name) for name in wanted],
            enable_fallback=0,
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
        name, hint = model if isinstance(model, str) else "a graph", refused_hint(providers, str(error))
        if hint is not None:
            raise ConfigError(f"ONNX Runtime cannot run {name} on {', '.join(providers)}: {error}", hint) from error
        raise BundleError(f"ONNX Runtime cannot load {name}: {error}", load_hint(str(error))) from error
    check_taken(providers, session.get_providers())
    return session


_UPGRADE = "upgrade ONNX Runtime ({} is installed): pip install --upgrade onnxruntime"
_LOAD_HINTS = (
    (("opset", "ir_version", "ir version", "no op registered", "not a registered", "not_implemented"), _UPGRADE),
    (("bad_alloc", "failed to allocate", "out of memory"), "free some memory, or use a smaller model"),
    (("no_suchfile",), "the file is gone: let the device fetch the bundle again (covey-edge run), or export it again"),
    (
        ("invalid_protobuf", "no graph was found"),
        "the file is damaged: let the device fetch the bundle again (covey-edge run), or export it again",
    ),
)


def load_hint(said: str) -> str:
    """Return what to do where ONNX Runtime does not load a graph; ``said``: its own words."""
    words = said.lower()
    for parts, hint in _LOAD_HINTS:
        if any(part in words for part in parts):
            return hint.format(ort.__version__)
    return f"{_UPGRADE.format(ort.__version__)}; or export the bundle again"


class _GraphRunner:
    """See bundle_engine.Runner."""

    def __init__(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor], opener: OnnxOpener) -> None:
        options = _with_constants(opener.options, graph, bound)
        self._session = make_session(str(bundle.file(graph.file)), opener.threads, options, opener.providers)
        self._outputs = [output.name for output in graph.outputs]
        self._batch_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "batch"]
        self._boundary_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "boundary"]
        self._mapped = bound  # a session may read its constants where they are mapped, and does not keep them alive
        constants = {i.name for i in graph.inputs if i.role == "constant"}
        forget_pages(bound[name] for name in constants)  # the session has laid out a copy, or reads them again
        self._bound = {n: ort.OrtValue.ortvalue_from_numpy(array) for n, array in bound.items() if n not in constants}
        self._trainable_inputs = [(i.name, i.source) for i in graph.inputs if i.role == "trainable"]

    def bind(self, trainable: Mapping[str, Tensor]) -> None:
        """Read the trainable parameters from other arrays from now on."""
        for name, source in self._trainable_inputs:
            self._bound[name] = ort.OrtValue.ortvalue_from_numpy(trainable[source])

    def run(self, batch: Batch, boundary: Boundary | None, *, gives_back: bool = False) -> Boundary:
        """Run the graph; the outputs are ONNX Runtime's own tensors, not copied."""
        feeds = dict(self._bound)
        for name, source in self._batch_inputs:
            feeds[name] = ort.OrtValue.ortvalue_from_numpy(getattr(batch, source))
        for name, source in self._boundary_inputs:
            feeds[name] = (boundary or {})[source]
        try:
            values = self._session.run_with_ort_values(self._outputs, feeds, shrinking() if gives_back else None)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens: {error}",
                _hint(error, "a smaller batch"),
            ) from error
        return dict(zip(self._outputs, values, strict=True))

    def to_numpy(self, value: Any) -> Any:  # noqa: ANN401 ONNX Runtime is untyped
        """Return an output as an array."""
        return value.numpy()

    def to_value(self, array: Tensor) -> Any:  # noqa: ANN401 ONNX Runtime is untyped
        """Return ONNX Runtime's tensor over the memory of an array."""
        return ort.OrtValue.ortvalue_from_numpy(array)


def _with_constants(
    options: ort.SessionOptions | None, graph: Graph, bound: Mapping[str, Tensor]
) -> ort.SessionOptions | None:
    """Give a graph its constants where they are mapped; ONNX Runtime lays out a copy of them, and reads no file."""
    names = [tensor.name for tensor in graph.inputs if tensor.role == "constant"]
    if not names:
        return options
    options = options or ort.SessionOptions()
    options.add_external_initializers(names, [ort.OrtValue.ortvalue_from_numpy(bound[name]) for name in names])
    return options


def _hint(error: Exception, smaller: str) -> str:
    """Return what to do about a run that failed; ONNX Runtime says in its text alone what was wrong."""
    if "out of data bounds" in str(error):
        return "a row has a token that the model does not know; check the bundle with: covey-edge bundle verify"
    return f"use {smaller} if memory is short; check the bundle with: covey-edge bundle verify"


def shrinking() -> ort.RunOptions:
    """Return options of runs after which the allocator gives back what it holds and no tensor uses."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class _TrainingGraphRunner:
    """See bundle_engine.TrainingRunner."""

    def __init__(self, bundle: Bundle, graph: Graph, opener: OnnxOpener) -> None:
        self._graph = graph
        path = str(bundle.file(graph.file))
        self._session = make_session(path, opener.threads, providers=opener.providers)

    def run(self, bound: Mapping[str, Tensor], batch: Batch) -> list[Tensor]:
        """Run the graph."""
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in bound.items()}
        for tensor in self._graph.inputs:
            if tensor.role == "batch":
                feeds[tensor.name] = ort.OrtValue.ortvalue_from_numpy(getattr(batch, tensor.source))
        names = [output.name for output in self._graph.outputs]
        try:
            # Levels and shapes change from batch to batch: what one run leaves in the allocator would not fit the next.
            values = self._session.run_with_ort_values(names, feeds, shrinking())
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on a batch of {batch.rows} × {batch.input_ids.shape[1]} tokens: {error}",
                _hint(error, "a smaller batch or fewer layers"),
            ) from error
        return [value.numpy() for value in values]


@dataclass(frozen=True)
class OnnxOpener:
    """Loads graphs on ONNX Runtime: see bundle_engine.GraphOpener.

    Attributes:
        threads: threads of one operator; 0: as many as may run at once.
        options: see make_session.
        providers: execution providers, as in edge.toml.
    """

    threads: int = 0
    options: ort.SessionOptions | None = None
    providers: tuple[str, ...] = CPU_ONLY
    runtime: ClassVar[Runtime] = "onnxruntime"

    def open(self, bundle: Bundle, graph: Graph, bound: dict[str, Tensor]) -> _GraphRunner:
        """See GraphOpener."""
        return _GraphRunner(bundle, graph, bound, self)

    def open_training(self, bundle: Bundle, graph: Graph) -> _TrainingGraphRunner:
        """See GraphOpener."""
        return _TrainingGraphRunner(bundle, graph, self)
