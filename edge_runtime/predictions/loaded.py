"""The model that predictions run on: loaded when it is first asked for, and again when the device has another one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.bundle.memory_need import predict_bytes
from edge_runtime.data.chat import read_chat_template, read_conversation
from edge_runtime.data.examples import Completion
from edge_runtime.data.tokens import TextEncoder
from edge_runtime.engines.continuation import Continuer, generation_facts
from edge_runtime.engines.predict import BATCH_SIZE, classify
from edge_runtime.errors import ConfigError, CoveyError, DataError, TrainingError
from edge_runtime.store.model import model_parameters, named_model, open_model_bundle

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.bundle_engine import BundlePredictor
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.sampling import Generation
    from edge_runtime.store.model import Named
    from edge_runtime.store.store import Store
    from edge_runtime.values import FloatVector

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3
"""Reads of the model's files: a round may end between reading their names and opening them."""


@dataclass
class _LoadedClassifier:
    """A graph and a tokenizer that classify texts."""

    predictor: BundlePredictor
    encoder: TextEncoder


@dataclass
class _LoadedBundle:
    """A bundle with what answers: a classifier, or what continues prompts."""

    bundle: Bundle
    answers: _LoadedClassifier | Continuer


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
            DataError: the model classifies, or has no chat template; or see read_conversation and ChatTemplate.render.
            ConfigError: jinja2 is not installed.
        """
        if not isinstance(self.loaded.answers, Continuer):
            raise DataError("chat is asked for, and this device's model classifies texts", "leave it out")
        try:
            template = read_chat_template(self.loaded.bundle)
        except ConfigError as error:  # the asker's mistake: the device is set up as it should be
            raise DataError(error.what, error.hint) from error
        return [template.render(read_conversation(text)) for text in texts]

    def predict(
        self, texts: Sequence[str], generation: Generation, *, is_rendered: bool = False, first: int = 0
    ) -> dict[str, Any]:
        """Classify texts, or continue prompts.

        Args:
            texts: the texts.
            generation: how prompts are continued.
            is_rendered: see Continuer.complete.
            first: see Continuer.complete.

        Returns:
            ``predictions``, of each text what ``covey-edge predict --format json`` prints; where prompts are continued,
            also ``generation``: see generation_facts.

        Raises:
            CoveyError: see engines.predict and engines.continuation.
        """
        answers = self.loaded.answers
        if isinstance(answers, Continuer):
            made = answers.complete(self.theta, texts, generation, is_rendered=is_rendered, first=first)
            return {
                "predictions": [{"prompt": one.prompt, "completion": one.completion} for one in made],
                "generation": generation_facts(made, generation, answers.why_not_cached),
            }
        task = self.loaded.bundle.manifest.task
        if not generation.is_greedy:
            raise DataError(
                f"a temperature is for models that continue text: this one's task is {task.kind}", "leave it out"
            )
        found = classify(task, answers.encoder, answers.predictor, self.theta, texts)
        rows = [{"text": one.text, "label": one.label, "probabilities": one.probabilities} for one in found]
        return {"predictions": rows}

    def check_rows(self, records: Sequence[dict[str, Any]]) -> None:
        """Check that the tokenizer takes rows of this model's task.

        Raises:
            DataError: it does not; the rows are numbered from 1.
        """
        answers = self.loaded.answers
        if isinstance(answers, Continuer):
            answers.encoder.encode([Completion(row["prompt"], row["completion"]) for row in records])
        else:
            answers.encoder.encode([row["text"] for row in records])


class ModelInUse:
    """Finds the model in use, and keeps it loaded. For one thread at a time.

    Args:
        store: the state directory.
        engines: the runtime.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, store: Store, engines: Engines, free_bytes: Callable[[], int | None], clock: Callable[[], float]
    ) -> None:
        self._store, self._engines, self._free_bytes, self._clock = store, engines, free_bytes, clock
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
        loaded = _LoadedBundle(bundle, self._answers(bundle))
        self._bundle = named, loaded
        return loaded

    def _answers(self, bundle: Bundle) -> _LoadedClassifier | Continuer:
        manifest = bundle.manifest
        if manifest.task.kind == CAUSAL_LM:
            return Continuer(bundle, self._engines, self._free_bytes, self._clock)
        encoder = TextEncoder(bundle.file(manifest.tokenizer_file), manifest.task, manifest.vocab_size)
        return _LoadedClassifier(self._engines.make_predictor(bundle), encoder)

    def _require_memory(self, bundle: Bundle) -> None:
        needed, free = predict_bytes(bundle.manifest, BATCH_SIZE, self._engines.runtime), self._free_bytes()
        if free is not None and needed > free:
            raise TrainingError(
                f"predictions need {needed} bytes of memory for one more graph, {free} are free",
                "free some memory, or use a smaller model; training goes on",
            )
