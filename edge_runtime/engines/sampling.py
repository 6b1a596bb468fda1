"""Which token follows: the likeliest one, or one drawn with temperature and top-p.

A draw follows from seed, text and place in the text alone, so it neither depends on other texts nor on what was drawn
before. Probabilities are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_runtime.errors import ConfigError, TrainingError
from edge_runtime.perturbation.philox import philox_words

if TYPE_CHECKING:
    from edge_runtime.values import FloatVector

HIGHEST_TEMPERATURE = 100.0
LARGEST_SEED = 2**63 - 1
DEFAULT_NEW_TOKENS = 16
_UNUSED_BITS = 11
"""Of a 64-bit word: a float64 holds 53 bits."""


@dataclass(frozen=True)
class Generation:
    """How prompts are continued.

    Attributes:
        max_new_tokens: the most new tokens of each prompt, at least 1.
        temperature: divides the logits; 0 takes the likeliest token (greedy).
        top_p: only the likeliest tokens whose probabilities sum to this are drawn from; 1: all.
        seed: of the draws, 0 … LARGEST_SEED.

    Raises:
        ConfigError: a value is out of its range, or has no effect.
    """

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, is_right, range_ in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more"),
            (
                "temperature",
                self.temperature,
                0 <= self.temperature <= HIGHEST_TEMPERATURE,
                f"0 … {HIGHEST_TEMPERATURE}",
            ),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("seed", self.seed, 0 <= self.seed <= LARGEST_SEED, f"0 … {LARGEST_SEED}"),
        ):
            if not is_right:
                raise ConfigError(f"{name} is {value}", f"give {range_}")
        if self.is_greedy and self.top_p != 1:
            raise ConfigError(
                f"top_p is {self.top_p}, and without a temperature nothing is drawn", "give a temperature"
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature == 0


def make_generation(
    max_new_tokens: int, temperature: float | None, top_p: float | None, seed: int | None
) -> Generation:
    """Return the settings that were given, and the default of each that was not.

    Raises:
        ConfigError: see Generation.
    """
    default = Generation()
    return Generation(
        max_new_tokens,
        default.temperature if temperature is None else temperature,
        default.top_p if top_p is None else top_p,
        default.seed if seed is None else seed,
    )


def pick_token(logits: FloatVector, generation: Generation, text: int, place: int) -> int:
    """Return the token that follows.

    Args:
        logits: float32, (vocabulary,).
        generation: temperature, top-p and seed.
        text: index of the prompt among those of the request, or of all requests that belong together.
        place: index of the token among the new ones.

    Raises:
        TrainingError: the logits are not finite.
    """
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise TrainingError("the model's logits are not finite", "use another adapter: this one has diverged")
    if generation.is_greedy:
        return best
    scaled = logits.astype(np.float64)
    probabilities = np.exp((scaled - scaled[best]) / generation.temperature)
    order = np.argsort(-scaled, kind="stable")
    sums = np.cumsum(probabilities[order])
    kept = int(np.searchsorted(sums, generation.top_p * sums[-1]))
    drawn = uniform(generation.seed, text, place) * sums[min(kept, sums.size - 1)]
    return int(order[min(int(np.searchsorted(sums, drawn, side="right")), kept, sums.size - 1)])


def uniform(seed: int, text: int, place: int) -> float:
    """Return a number in [0, 1): the first word of Philox 4×64-10 with key (seed, text) and counter ``place``."""
    word = int(philox_words(seed, text, place, 1)[0])
    return float(word >> _UNUSED_BITS) * 2.0 ** -(64 - _UNUSED_BITS)
