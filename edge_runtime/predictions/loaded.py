"""The model that predictions run on: loaded when it is first asked for, and again when the device has another one."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.bundle.memory_need import predict_bytes
from edge_runtime.data.chat import read_chat_template, read_conversation
from edge_runtime.data.examples import Completion
from edge_runtime.data.tokens import CompletionEncoder, TextEncoder
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.predict import BATCH_SIZE, classify, complete
from edge_runtime.errors import CoveyError, DataError, TrainingError
from edge_runtime.store.model import model_parameters, named_model, open_model_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.bundle_engine import BundlePredictor
    from edge_runtime.store.model import Named
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3
"""Reads of the model's files: a round may end between reading their names and opening them."""


@dataclass(frozen=True)
class KeptEngines(Engines):
    """Engines that load the graph of a bundle's whole model once; for one bundle."""

    _kept: list[BundlePredictor] = field(default_factory=list, repr=False, compare=False)

    def make_predictor(self, bundle: Bundle) -> BundlePredictor:
        """See Engines; the second call returns what the first has made."""
        if not self._kept:
            self._kept.append(super().make_predictor(bundle))
        return self._kept[0]


@dataclass
class _LoadedBundle:
    """A bundle with its graph and its tokenizer."""

    bundle: Bundle
    engines: KeptEngines
    texts: TextEncoder | None
    completions: CompletionEncoder | None


@dataclass(frozen=True)
class Model:
    """A model that is ready: what it is made of, and its parameters.

    Attributes:
        named: what it is made of.
        loaded: its bundle, with graph and tokenizer.
        theta: its parameters, float32, (parameters,).
    """

    named: Named
    loaded: _LoadedBundle
    theta: FloatVector

    @property
    def is_causal(self) -> bool:
        """Whether it continues prompts; else it classifies texts."""
        return self.loaded.completions is not None

    def version(self) -> dict[str, str | None]:
        """Return the hashes that name it: of the bundle, of the shared adapter, and of the device's own layers."""
        bundle, adapter = self.loaded.bundle, self.named.adapter
        return {
            "bundle_sha256": bundle.sha256,
            "adapter_sha256": bundle.initial_sha256 if adapter is None else adapter.stem,
            "personal_sha256": self.named.personal_sha256,
        }

    def rendered(self, texts: Sequence[str]) -> list[str]:
        """Return each conversation as the text to continue, written by the bundle's chat template.

        Raises:
            DataError: the model classifies; or see read_conversation and ChatTemplate.render.
            ConfigError: the bundle's model has no chat template.
        """
        if not self.is_causal:
            raise DataError("chat is asked for, and this device's model classifies texts", "leave it out")
        template = read_chat_template(self.loaded.bundle)
        return [template.render(read_conversation(text)) for text in texts]

    def predict(self, texts: Sequence[str], max_new_tokens: int, *, is_rendered: bool = False) -> list[dict[str, Any]]:
        """Classify texts, or continue prompts; returns what ``covey-edge predict --format json`` prints of each.

        Args:
            texts: the texts.
            max_new_tokens: of each prompt.
            is_rendered: see engines.predict.complete.

        Raises:
            CoveyError: see engines.predict.
        """
        loaded = self.loaded
        if loaded.texts is None:
            made = complete(loaded.bundle, self.theta, texts, max_new_tokens, loaded.engines, is_rendered=is_rendered)
            return [{"prompt": one.prompt, "completion": one.completion} for one in made]
        predictor, task = loaded.engines.make_predictor(loaded.bundle), loaded.bundle.manifest.task
        found = classify(task, loaded.texts, predictor, self.theta, texts)
        return [{"text": one.text, "label": one.label, "probabilities": one.probabilities} for one in found]

    def check_rows(self, records: Sequence[dict[str, Any]]) -> None:
        """Check that the tokenizer takes rows of this model's task.

        Raises:
            DataError: it does not; the rows are numbered from 1.
        """
        if self.loaded.completions is not None:
            self.loaded.completions.encode([Completion(row["prompt"], row["completion"]) for row in records])
        elif self.loaded.texts is not None:
            self.loaded.texts.encode([row["text"] for row in records])


class ModelInUse:
    """Finds the model in use, and keeps it loaded. For one thread at a time.

    Args:
        store: the state directory.
        engines: the runtime.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
    """

    def __init__(self, store: Store, engines: Engines, free_bytes: Callable[[], int | None]) -> None:
        self._store, self._engines, self._free_bytes = store, engines, free_bytes
        self._bundle: tuple[Named, _LoadedBundle] | None = None
        self._model: Model | None = None

    def get(self) -> Model:
        """Return the model in use; what of it is loaded already is not read again.

        Raises:
            ConfigError: there is none yet.
            BundleError: a file of it is missing or altered.
            StorageError: the state directory cannot be read.
            TrainingError: memory is too short for it.
        """
        for attempt in range(_ATTEMPTS):
            named = named_model(self._store)
            if self._model is not None and self._model.named == named:
                return self._model
            try:
                loaded = self._loaded(named)
                self._model = Model(named, loaded, model_parameters(self._store, named, loaded.bundle))
            except CoveyError:
                if attempt == _ATTEMPTS - 1 or named_model(self._store) == named:
                    raise
            else:
                _LOG.info("predictions come from bundle %s now", loaded.bundle.sha256[:12])
                return self._model
        raise AssertionError  # the last attempt has returned or raised

    def _loaded(self, named: Named) -> _LoadedBundle:
        if self._bundle is not None and self._bundle[0].folder == named.folder:
            return self._bundle[1]
        self._bundle = self._model = None  # memory holds one at a time
        bundle = open_model_bundle(self._store, named, self._engines.runtime)
        self._require_memory(bundle)
        manifest = bundle.manifest
        tokenizer_file, task = bundle.file(manifest.tokenizer_file), manifest.task
        is_causal = task.kind == CAUSAL_LM
        engines = KeptEngines(self._engines.runtime, self._engines.threads, self._engines.providers)
        loaded = _LoadedBundle(
            bundle,
            engines,
            None if is_causal else TextEncoder(tokenizer_file, task, manifest.vocab_size),
            CompletionEncoder(tokenizer_file, task, manifest.vocab_size) if is_causal else None,
        )
        engines.make_predictor(bundle)
        self._bundle = named, loaded
        return loaded

    def _require_memory(self, bundle: Bundle) -> None:
        needed, free = predict_bytes(bundle.manifest, BATCH_SIZE, self._engines.runtime), self._free_bytes()
        if free is not None and needed > free:
            raise TrainingError(
                f"predictions need {needed} bytes of memory for one more graph, {free} are free",
                "free some memory, or use a smaller model; training goes on",
            )
