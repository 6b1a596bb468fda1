"""Routines that continue a prompt: with the cache of a bundle's decode graph, and without one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from benchmarks.workers.routines import bundle_of

if TYPE_CHECKING:
    from benchmarks.workers.routines import Routine, Routines, Settings
    from edge_runtime.bundle.folder import Bundle

_WORD = " the"
"""One token of SmolLM2's tokenizer, and of most others."""


def with_cache(settings: Settings) -> Routines:
    """``run``: continue a prompt of ``prompt_tokens`` by ``new_tokens``, with a cache."""
    return {"run": _continuing(bundle_of(settings), settings)}


def without_cache(settings: Settings) -> Routines:
    """``run``: the same as with_cache, on the bundle as an export without a decode graph describes it."""
    from edge_runtime.bundle.decode import DECODE_FILE

    bundle = bundle_of(settings)
    files = [entry for entry in bundle.manifest.files if entry.path != DECODE_FILE]
    older = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=files))
    return {"run": _continuing(older, settings)}


def _continuing(bundle: Bundle, settings: Settings) -> Routine:
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.continuation import Continuer
    from edge_runtime.engines.sampling import Generation

    # No token ends the text, so that every run makes as many.
    task = msgspec.structs.replace(bundle.manifest.task, eos_token_id=None)
    endless = replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, task=task))
    continuer = Continuer(endless, Engines(threads=settings["threads"]))
    theta, prompt = bundle.initial_adapter(), _WORD * settings["prompt_tokens"]
    wanted = settings["prompt_tokens"], settings["new_tokens"]

    def run() -> None:
        (made,) = continuer.complete(theta, [prompt], Generation(settings["new_tokens"]))
        if (made.prompt_tokens, len(made.tokens)) != wanted:
            raise SystemExit(f"{made.prompt_tokens} tokens were continued by {len(made.tokens)}, not {wanted}")

    return run
