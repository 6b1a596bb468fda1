"""Continues prompts with a causal model: with a cache of keys and values where the bundle has a decode graph.

Without one, each new token runs the whole prompt again, on the graph of the whole model, which gives the likeliest
token alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.decode import Decode
from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.data.batch import IGNORED, CompletionBatch, pad
from edge_runtime.data.tokens import CompletionEncoder
from edge_runtime.engines.choose import ONNX_RUNTIME
from edge_runtime.engines.sampling import Generation, pick_token
from edge_runtime.errors import ConfigError, DataError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Task
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.engines.onnx_decode import OnnxDecoder
    from edge_runtime.values import FloatVector

_COPIES = 2
"""Caches in memory while a token is made: the one before, and the one with the token."""


@dataclass(frozen=True)
class Continuation:
    """A prompt, the text that the model continues it with, and what that took.

    Attributes:
        prompt: the prompt.
        completion: the new text.
        tokens: the new tokens, without the end-of-text token.
        prompt_tokens: how many tokens the prompt has.
        is_ended: whether the model ended the text; else the tokens that were asked for, or the positions, were used up.
        first_s: seconds until the first new token.
        further_s: seconds of all further ones, and of the end-of-text token.
        further_tokens: how many these are.
        cache_bytes: bytes of the keys and values that were kept at the end; None: there is no cache.
    """

    prompt: str
    completion: str
    tokens: list[int]
    prompt_tokens: int
    is_ended: bool
    first_s: float
    further_s: float
    further_tokens: int
    cache_bytes: int | None


class Continuer:
    """Continues prompts with one bundle, and keeps its graph and tokenizer loaded. For one thread at a time.

    Args:
        bundle: a bundle of a causal model.
        engines: the runtime.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
        clock: returns monotonic seconds.

    Raises:
        BundleError: the bundle cannot be run.
        ConfigError: its task is not causal-lm.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: Engines = ONNX_RUNTIME,
        free_bytes: Callable[[], int | None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        manifest = bundle.manifest
        self._task, self._free_bytes, self._clock = manifest.task, free_bytes, clock
        if self._task.kind != CAUSAL_LM:
            what = f"the bundle's task is {self._task.kind}: it does not continue prompts"
            raise ConfigError(what, "use predict.predict")
        self.encoder = CompletionEncoder(bundle.file(manifest.tokenizer_file), self._task, manifest.vocab_size)
        found = engines.find_decode(bundle)
        self._decode = found if isinstance(found, Decode) else None
        self.why_not_cached = None if isinstance(found, Decode) else found.reason
        self._reader: _Cached | _Uncached
        if isinstance(found, Decode):
            self._reader = _Cached(engines.make_decoder(bundle, found), found)
        else:
            self._reader = _Uncached(engines.make_predictor(bundle), self._task)

    def complete(
        self,
        theta: FloatVector,
        prompts: Sequence[str],
        generation: Generation,
        *,
        is_rendered: bool = False,
        first: int = 0,
    ) -> list[Continuation]:
        """Continue prompts until the end-of-text token, the most new tokens, or the end of the model's positions.

        Without a cache a row has at most the bundle's ``max_tokens``, and a longer prompt loses its beginning.

        Args:
            theta: the adapter.
            prompts: the texts.
            generation: how many tokens, and how they are chosen.
            is_rendered: whether the prompts hold their special tokens already, as a chat template writes them; such a
                prompt is not cut.
            first: index of the first prompt, where these are a part of many: each index has draws of its own.

        Raises:
            DataError: a prompt has no tokens, cannot be encoded, or is too long; or tokens shall be drawn, which
                needs a decode graph.
            TrainingError: memory is too short for the cache, or the runtime failed.
        """
        if self.why_not_cached is not None and not generation.is_greedy:
            raise DataError(
                f"a temperature needs the logits of the next token: {self.why_not_cached}",
                "leave the temperature out, which takes the likeliest token",
            )
        encoded = [self._encode(prompt, is_rendered=is_rendered) for prompt in prompts]
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not ids:
                raise DataError(
                    f"the prompt {prompt!r} has no tokens", "give a longer prompt", facts="a prompt has no tokens"
                )
            self._require_memory(len(ids), generation.max_new_tokens)
        return [
            self._continue(theta, prompt, ids, generation, number)
            for number, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True), start=first)
        ]

    def _encode(self, prompt: str, *, is_rendered: bool) -> list[int]:
        if self._decode is not None:
            return self.encoder.encode_whole(prompt, self._decode.positions, is_rendered=is_rendered)
        return self.encoder.encode_rendered(prompt) if is_rendered else self.encoder.encode_prompt(prompt)

    def _require_memory(self, prompt_tokens: int, new_tokens: int) -> None:
        if self._decode is None:
            return
        tokens = min(prompt_tokens + new_tokens, self._decode.positions)
        needed, free = _COPIES * tokens * self._decode.cache_bytes_a_token, self._free_bytes()
        if free is not None and needed > free:
            raise TrainingError(
                f"a text of {tokens} tokens needs {needed} bytes of memory for its keys and values, {free} are free",
                "ask for fewer new tokens, or give a shorter prompt",
            )

    def _continue(
        self, theta: FloatVector, prompt: str, ids: list[int], generation: Generation, number: int
    ) -> Continuation:
        reader, new, times = self._reader, list[int](), [self._clock()]
        unread, is_ended = ids, False
        try:
            reader.start(theta)
            while len(new) < generation.max_new_tokens and len(ids) + len(new) < reader.longest:
                token = reader.next_token(unread, generation, number, len(new))
                times.append(self._clock())
                is_ended = token == self._task.eos_token_id
                if is_ended:
                    break
                new.append(token)
                unread = [token]
            cache_bytes = reader.cache_bytes
        finally:
            reader.end()
        return Continuation(
            prompt,
            self.encoder.decode(new),
            new,
            prompt_tokens=len(ids),
            is_ended=is_ended,
            first_s=times[min(1, len(times) - 1)] - times[0],
            further_s=times[-1] - times[min(1, len(times) - 1)],
            further_tokens=max(0, len(times) - 2),
            cache_bytes=cache_bytes,
        )


class _Cached:
    """Reads a text with a decode graph."""

    def __init__(self, decoder: OnnxDecoder, decode: Decode) -> None:
        self._decoder, self._decode = decoder, decode
        self.longest = decode.positions

    @property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values that are kept."""
        return self._decoder.tokens_read * self._decode.cache_bytes_a_token

    def start(self, theta: FloatVector) -> None:
        """Begin a text."""
        self._decoder.start(theta)

    def end(self) -> None:
        """Give the memory of the text back."""
        self._decoder.forget()

    def next_token(self, unread: Sequence[int], generation: Generation, text: int, place: int) -> int:
        """Read tokens; return the one that follows. See sampling.pick_token."""
        return pick_token(self._decoder.read(unread), generation, text, place)


class _Uncached:
    """Reads a text with the graph of the whole model, again from its beginning for each token."""

    cache_bytes = None

    def __init__(self, predictor: Predictor, task: Task) -> None:
        self._predictor, self._task = predictor, task
        self.longest = task.max_tokens
        self._ids: list[int] = []
        self._theta: FloatVector = np.empty(0, dtype=np.float32)

    def start(self, theta: FloatVector) -> None:
        """Begin a text."""
        self._theta, self._ids = theta, []

    def end(self) -> None:
        """Do nothing: nothing is kept."""

    def next_token(self, unread: Sequence[int], generation: Generation, text: int, place: int) -> int:
        """Read tokens; return the likeliest one after them, the only one that this graph names."""
        del generation, text, place
        self._ids = [*self._ids, *unread]
        batch = pad([self._ids], [0], self._task.pad_token_id)
        last = np.array([[len(self._ids) - 1]], dtype=np.int64)
        asked = CompletionBatch(batch.input_ids, batch.attention_mask, np.full((1, 1), IGNORED, np.int64), last)
        return int(self._predictor.token_scores(self._theta, asked)[1][0, 0])


def generation_facts(
    made: Sequence[Continuation], generation: Generation, why_not_cached: str | None
) -> dict[str, Any]:
    """Return what a request's continuations took, for JSON: settings, tokens, seconds, tokens a second, cache.

    ``tokens_per_second`` counts the tokens after each prompt's first one; None where there are none. ``cache_bytes`` is
    the largest cache; None without one, and then ``why_not_cached`` says why.
    """
    further, further_s = sum(one.further_tokens for one in made), sum(one.further_s for one in made)
    return {
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        "seed": generation.seed,
        "prompt_tokens": sum(one.prompt_tokens for one in made),
        "new_tokens": sum(len(one.tokens) for one in made),
        "ended": [one.is_ended for one in made],
        "seconds": round(further_s + sum(one.first_s for one in made), 6),
        "first_token_seconds": round(max((one.first_s for one in made), default=0.0), 6),
        "tokens_per_second": round(further / further_s, 3) if further and further_s > 0 else None,
        "cached": why_not_cached is None,
        "why_not_cached": why_not_cached,
        "cache_bytes": max((one.cache_bytes for one in made if one.cache_bytes is not None), default=None),
    }
