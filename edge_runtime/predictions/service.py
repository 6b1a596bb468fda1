"""Answers requests for predictions, and takes corrections; the same for every way in which they come."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from edge_runtime.data.corrections import LONGEST_CHARACTERS, add_corrections, check_records, check_task
from edge_runtime.engines.sampling import DEFAULT_NEW_TOKENS, HIGHEST_TEMPERATURE, LARGEST_SEED, make_generation
from edge_runtime.errors import ConfigError, DataError, wall
from edge_runtime.predictions.limits import MinuteLimit
from edge_runtime.predictions.loaded import ModelInUse
from edge_runtime.protocol.predictions import MOST_TEXTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.data.config import DataConfig
    from edge_runtime.data.corrections import Added
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.sampling import Generation
    from edge_runtime.predictions.loaded import Model
    from edge_runtime.predictions.rules import PredictRules
    from edge_runtime.store.store import Store

MOST_EARLIER = 2**32
"""Texts that may come before those of a request."""
Text = Annotated[str, msgspec.Meta(max_length=LONGEST_CHARACTERS)]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request for predictions.

    Attributes:
        text: one text or several; causal-lm: prompts.
        max_new_tokens: causal-lm: largest number of new tokens; None: DEFAULT_NEW_TOKENS, or fewer where the device
            allows fewer.
        chat: causal-lm: each text is a message of a user, or ``{"messages": [{"role": …, "content": …}]}``, and what is
            continued is what the model's chat template makes of it. None: the texts are continued as they are.
        temperature: causal-lm: divides the logits before a token is drawn; None: 0, the likeliest token.
        top_p: causal-lm: only the likeliest tokens whose probabilities sum to this are drawn from; None: 1, all.
        seed: causal-lm: of the draws; None: 0. The same seed gives the same tokens.
        first: causal-lm: how many texts were in earlier requests that belong to this one: each text of them all has
            random numbers of its own. None: 0.
    """

    text: Text | Annotated[list[Text], msgspec.Meta(min_length=1, max_length=MOST_TEXTS)]
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None = None
    chat: bool | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=HIGHEST_TEMPERATURE)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=LARGEST_SEED)] | None = None
    first: Annotated[int, msgspec.Meta(ge=0, le=MOST_EARLIER)] | None = None

    def generation(self, most: int) -> Generation:
        """Return how prompts are continued.

        Args:
            most: the most new tokens that this device allows.

        Raises:
            DataError: the request wants more, or its settings contradict each other.
        """
        wanted = min(DEFAULT_NEW_TOKENS, most) if self.max_new_tokens is None else self.max_new_tokens
        if wanted > most:
            raise DataError(
                f"{wanted} new tokens are asked for, {most} are allowed",
                "ask for fewer, or raise max_new_tokens under [predict] in edge.toml",
            )
        try:
            return make_generation(wanted, self.temperature, self.top_p, self.seed)
        except ConfigError as error:
            raise DataError(error.what, error.hint) from error

    @property
    def texts(self) -> list[str]:
        """The texts as a list."""
        return [self.text] if isinstance(self.text, str) else self.text


def read_ask(body: bytes) -> Ask:
    """Read a request for predictions.

    Raises:
        DataError: it is none.
    """
    with wall(lambda cause: DataError(f"this is no request: {cause}", 'send {"text": "…"} or {"text": ["…", "…"]}')):
        return msgspec.json.decode(body, type=Ask)


def read_rows(body: bytes) -> list[dict[str, Any]]:
    """Read corrections: one object or a list of them; add_corrections says what is in them.

    Raises:
        DataError: they are none.
    """
    hint = f'send {{"text": "…", "label": "…"}}, or a list of at most {MOST_TEXTS} of them'
    with wall(lambda cause: DataError(f"these are no corrections: {cause}", hint)):
        rows: list[dict[str, Any]] | dict[str, Any] = msgspec.json.decode(
            body,
            type=dict[str, Any] | Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=MOST_TEXTS)],
        )
    return [rows] if isinstance(rows, dict) else rows


class PredictionService:
    """Answers with the model in use. Safe to use from several threads; one prediction runs at a time.

    Args:
        store: the state directory.
        data: where corrections go, and how many are kept.
        engines: the runtime.
        rules: how much is answered.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
        clock: returns monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        data: DataConfig,
        engines: Engines,
        rules: PredictRules,
        free_bytes: Callable[[], int | None],
        clock: Callable[[], float],
    ) -> None:
        self._data, self._rules = data, rules
        self._texts = MinuteLimit("texts", rules.texts_per_minute, clock)
        self._corrections = MinuteLimit("corrections", rules.feedback_per_minute, clock)
        self._models = ModelInUse(store, engines, free_bytes, clock)
        self._lock = threading.Lock()

    def predict(self, ask: Ask) -> dict[str, Any]:
        """Answer a request: the hashes of the model that answered, and its predictions in the order of the texts.

        For causal-lm, ``generation`` says how the texts were continued: see generation_facts.

        Raises:
            TooManyError: see MinuteLimit.take.
            DataError: it wants more new tokens than this device allows, or a temperature that the model in use cannot
                draw with; or a text cannot be encoded; or see Model.rendered.
            CoveyError: see ModelInUse.get and Model.predict.
        """
        generation = ask.generation(self._rules.max_new_tokens)
        self._texts.take(len(ask.texts))
        with self._lock:
            model = self._models.get()
            texts = model.rendered(ask.texts) if ask.chat else ask.texts
            found = model.predict(texts, generation, is_rendered=bool(ask.chat), first=ask.first or 0)
        return {**model.version(), **found}

    def correct(self, records: Sequence[dict[str, Any]]) -> Added:
        """Add corrections, all or none; when this returns they are on disk. The next round uses them.

        Raises:
            TooManyError: see MinuteLimit.take.
            DataError: see add_corrections, check_task and Model.check_rows.
            CoveyError: see ModelInUse.get: what the model in use could not learn from is not taken.
        """
        if not self._data.corrections:
            raise ConfigError("this device keeps no corrections", "name a file: [data] corrections in edge.toml")
        self._corrections.take(len(records))
        with self._lock:
            self._check(self._models.get(), records)
        return add_corrections(Path(self._data.corrections), records, self._data.most_corrections)

    def stop(self, patience_s: float) -> None:
        """Let the prediction at work end, and begin no other: a library that runs while the process ends may crash it.

        Args:
            patience_s: seconds to wait for it.
        """
        self._lock.acquire(timeout=patience_s)

    def _check(self, model: Model, records: Sequence[dict[str, Any]]) -> None:
        check_records(records)
        check_task(records, model.loaded.bundle.manifest.task, self._data.label_names)
        model.check_rows(records)
