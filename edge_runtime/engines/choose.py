"""The engines of a bundle, by the name of the runtime. A runtime is imported when its first engine is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.decode import find_decode
from edge_runtime.bundle.stack import find_stack
from edge_runtime.engines.back_stack import BundleBackStack
from edge_runtime.engines.bundle_engine import BundleEngine, BundlePredictor
from edge_runtime.engines.bundle_training import BundleTrainingEngine
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.host.threads import threads_or_usable

if TYPE_CHECKING:
    from edge_runtime.bundle.decode import Decode, NoDecode
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from edge_runtime.bundle.stack import NoStack, StackGraph
    from edge_runtime.engines.bundle_engine import GraphOpener
    from edge_runtime.engines.onnx_decode import OnnxDecoder


@dataclass(frozen=True)
class Engines:
    """A runtime, its threads, what it runs on; makes every kind of engine of a bundle. See engine.MakesEngines.

    Attributes:
        runtime: the library that runs the graphs. It is never replaced by another one.
        threads: threads of one operator; 0: as many as may run at once, of which ExecuTorch takes the fast cores.
        providers: execution providers of ONNX Runtime, as in edge.toml; none is replaced by another one.
    """

    runtime: Runtime = "onnxruntime"
    threads: int = 0
    providers: tuple[str, ...] = CPU_ONLY

    @property
    def name(self) -> str:
        """The runtime and, where it runs on more than the processor, its execution providers."""
        return self.runtime if self.providers == CPU_ONLY else f"{self.runtime} ({', '.join(self.providers)})"

    def make_engine(self, bundle: Bundle, split: int) -> BundleEngine:
        """Return front and back of a bundle at one of its splits.

        Raises:
            BundleError: the bundle has no such split or no graphs for the runtime, or they cannot be loaded.
            ConfigError: the runtime is not installed.
        """
        return BundleEngine(bundle, split, self.opener())

    def make_training_engine(self, bundle: Bundle) -> BundleTrainingEngine:
        """Return loss and gradients of a bundle's levels. Each level's graph is loaded when it is first run.

        Raises:
            ConfigError: the runtime is not installed.
        """
        return BundleTrainingEngine(bundle, self.opener())

    def make_predictor(self, bundle: Bundle) -> BundlePredictor:
        """Return the whole model of a bundle.

        Raises:
            BundleError: the bundle has no graph for the runtime, or it cannot be loaded.
            ConfigError: the runtime is not installed.
        """
        return BundlePredictor(bundle, self.opener())

    def find_decode(self, bundle: Bundle) -> Decode | NoDecode:
        """Return the decode graph of a bundle, or why prompts are continued without a cache.

        Raises:
            BundleError: its description is damaged.
        """
        return find_decode(bundle.path, bundle.manifest, self.runtime)

    def make_decoder(self, bundle: Bundle, decode: Decode) -> OnnxDecoder:
        """Return the whole model of a bundle with a cache, for what find_decode has found.

        Raises:
            BundleError: the graph cannot be loaded.
            ConfigError: the runtime is not installed.
        """
        from edge_runtime.engines.onnx_decode import OnnxDecoder  # noqa: PLC0415 idle devices stay small

        return OnnxDecoder(bundle, decode, self.threads, self.providers)

    def find_stack(self, bundle: Bundle, split: int) -> StackGraph | NoStack:
        """Return the stack graph of a split of a bundle, or why one adapter is run after the other.

        Raises:
            BundleError: its description is damaged.
        """
        return find_stack(bundle.path, bundle.manifest, split, self.runtime)

    def make_back_stack(self, bundle: Bundle, split: int, adapters: int) -> BundleBackStack:
        """Return the back block of a split for up to ``adapters`` adapters in one call.

        Raises:
            BundleError: there is no stack graph, or it cannot be loaded.
            ConfigError: the runtime is not installed.
        """
        return BundleBackStack(bundle, split, adapters, self.opener())

    def operator_threads(self) -> int:
        """Return the threads that one operator has, once a graph was opened; 0 was asked for: as many as were given."""
        if self.runtime == "executorch":
            from edge_runtime.engines.executorch_library import threads_now  # noqa: PLC0415 idle devices stay small

            return threads_now()
        return threads_or_usable(self.threads)

    def opener(self) -> GraphOpener:
        """Return what loads graphs of this runtime; imports the runtime."""
        if self.runtime == "executorch":
            from edge_runtime.engines.executorch_engine import ExecutorchOpener  # noqa: PLC0415 idle devices stay small

            return ExecutorchOpener(self.threads)
        from edge_runtime.engines.onnx_engine import OnnxOpener  # noqa: PLC0415 idle devices stay small

        return OnnxOpener(self.threads, providers=self.providers)


ONNX_RUNTIME = Engines()
"""ONNX Runtime with as many threads as may run at once."""
