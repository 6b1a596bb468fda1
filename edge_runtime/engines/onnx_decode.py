"""Runs a bundle's decode graph on ONNX Runtime: one token after another, with a cache of keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from edge_runtime.bundle.decode import LOGITS
from edge_runtime.bundle.layout import total_size
from edge_runtime.engines.bundle_engine import bind_inputs, block_views, frozen_tensors
from edge_runtime.engines.onnx_engine import make_session, shrinking
from edge_runtime.errors import DataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.decode import Decode
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector

_FED = ("batch", "boundary")
CHUNK_TOKENS = 128
"""Tokens of a prompt that run at once: what attention computes for more would take memory with their square."""


class OnnxDecoder:
    """The whole model of a bundle, for one text at a time: it keeps the keys and values of the tokens it has read.

    Args:
        bundle: an opened bundle.
        decode: its decode graph.
        threads: threads of one operator; 0: as many as may run at once.
        providers: execution providers, as in edge.toml.

    Raises:
        BundleError: the graph cannot be loaded, or does not match the files.
        ConfigError: an execution provider is not there.
    """

    def __init__(self, bundle: Bundle, decode: Decode, threads: int, providers: Sequence[str]) -> None:
        self._decode, self._parameters = decode, bundle.manifest.parameters
        self._is_full = bundle.manifest.train == "full"
        self._theta: FloatVector = (
            bundle.initial_adapter() if self._is_full else np.zeros(total_size(self._parameters), dtype=np.float32)
        )
        self._frozen = frozen_tensors(bundle)
        self._session = make_session(str(bundle.file(decode.graph.file)), threads, providers=providers)
        self._outputs = [output.name for output in decode.graph.outputs]
        self._inputs = {tensor.source: tensor.name for tensor in decode.graph.inputs if tensor.role in _FED}
        self._bound: dict[str, Any] = {}
        self._cache: dict[str, Any] = {}
        self._options = shrinking()
        self._n_read = 0
        self._bind()

    @property
    def tokens_read(self) -> int:
        """Tokens of the present text whose keys and values are kept."""
        return self._n_read

    def start(self, theta: FloatVector) -> None:
        """Begin a text: forget the one before.

        Args:
            theta: trainable parameters, float32, whole layout; read in place where every weight is trained, which it
                then must stay until the text's end, and copied otherwise.
        """
        if not self._is_full:
            np.copyto(self._theta, theta)
        elif self._theta is not theta:
            self._theta = theta
            self._bind()
        self.forget()

    def forget(self) -> None:
        """Drop the text's keys and values."""
        empty = {
            name: np.zeros((1, heads, 0, size), dtype=np.float32)
            for name, (heads, size) in self._decode.cache_shapes.items()
        }
        self._cache = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in empty.items()}
        self._n_read = 0

    def read(self, ids: Sequence[int]) -> FloatVector:
        """Read the text's next tokens; return the logits of the token after them, float32, (vocabulary,).

        Raises:
            DataError: the text would be longer than the model has positions for.
            TrainingError: the runtime failed.
        """
        if self._n_read + len(ids) > self._decode.positions:
            raise DataError(
                f"{self._n_read + len(ids)} tokens are more than the {self._decode.positions} positions of the model",
                "give a shorter prompt",
            )
        logits: FloatVector = np.empty(0, dtype=np.float32)
        for start in range(0, len(ids), CHUNK_TOKENS):
            logits = self._run(ids[start : start + CHUNK_TOKENS])
        return logits

    def _run(self, ids: Sequence[int]) -> FloatVector:
        tokens = np.asarray([ids], dtype=np.int64)
        feeds = dict(self._bound)
        feeds[self._inputs["input_ids"]] = ort.OrtValue.ortvalue_from_numpy(tokens)
        for source, value in self._cache.items():
            feeds[self._inputs[source]] = value
        try:
            values = self._session.run_with_ort_values(self._outputs, feeds, self._options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base but Exception
            raise TrainingError(
                f"ONNX Runtime failed on {len(ids)} tokens after {self._n_read}: {error}",
                "give a shorter prompt if memory is short; check the bundle with: covey-edge bundle verify",
            ) from error
        named = dict(zip(self._outputs, values, strict=True))
        logits: FloatVector = named.pop(LOGITS).numpy()[0]
        self._cache = named
        self._n_read += len(ids)
        return logits

    def _bind(self) -> None:
        """Bind weights and parameters; nothing is copied."""
        arrays = bind_inputs(self._decode.graph, self._frozen, block_views(self._theta, self._parameters))
        self._bound = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
