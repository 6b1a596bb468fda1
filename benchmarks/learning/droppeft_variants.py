"""What droppeft.py compares: each variant's share of layers, fleet and settings, and each model's plan."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.harness.comparison import Setup
from server.demo.recipes import RECIPES

Fleet = Literal["backprop", "hybrid", "few-backprop", "forward"]
Plan = tuple[tuple[str, tuple[str, ...]], ...]
"""Divisions with the variants that run on their rows, in the order in which they run."""

BACKPROP_DEVICES = 5
"""How many devices of the hybrid fleet backpropagate."""
COHORTS: dict[Fleet, int] = {"backprop": 4, "hybrid": 8, "few-backprop": 2, "forward": 6}
"""Devices per round. A round of the hybrid fleet has 2 backprop and 6 forward-only devices on average."""
DIVISIONS: dict[str, float | None] = {"movie": None, "dirichlet-0.1": 0.1, "dirichlet-1": 1.0, "dirichlet-10": 10.0}
"""How the rows are divided: by movie (None), or by label with this concentration of the Dirichlet distribution."""


@dataclass(frozen=True)
class Variant:
    """A row of the table.

    Attributes:
        share: the share of the layers that backprop devices run per mini-batch.
        rate: the variant whose tuned learning rate it takes: ``full`` or ``half``.
        stld: further fields of ``[stld]``.
        fleet: ``backprop``: all devices backpropagate; ``hybrid``: some do; ``few-backprop`` and ``forward``: only the
            hybrid fleet's devices of one kind.
        rounds_factor: factor on the plan's rounds.
        bundle: the bundle whose graphs it runs: ``bundle``, or ``bundle-rescale``.
    """

    share: float
    rate: str
    stld: dict[str, Any] = field(default_factory=dict)
    fleet: Fleet = "backprop"
    rounds_factor: float = 1
    bundle: str = "bundle"


def _personal(importance: str = "gradient") -> dict[str, Any]:
    return {"personal_share": 0.34, "importance": importance}


HALF = Variant(0.5, "half")
VARIANTS = {
    "full": Variant(1.0, "full"),
    "half": HALF,
    "three-quarters": Variant(0.75, "half"),
    "third": Variant(0.33, "half"),
    "half-incremental": Variant(0.5, "half", {"shape": "incremental"}),
    "half-decay": Variant(0.5, "half", {"shape": "decay"}),
    "half-normal": Variant(0.5, "half", {"shape": "normal"}),
    "full-half-the-rounds": Variant(1.0, "full", rounds_factor=0.5),
    "half-twice-the-rounds": dataclasses.replace(HALF, rounds_factor=2),
    "half-bernoulli": Variant(0.5, "half", {"draw": "bernoulli"}),
    "half-rescaled": Variant(0.5, "half", {"rescale": True}, bundle="bundle-rescale"),
    "full-personal": Variant(1.0, "full", _personal()),
    "half-personal": Variant(0.5, "half", _personal()),
    "half-personal-fisher": Variant(0.5, "half", _personal("fisher")),
    "half-personal-update": Variant(0.5, "half", _personal("update")),
    "half-personal-random": Variant(0.5, "half", _personal("random")),
    "half-personal-depth": Variant(0.5, "half", _personal("depth")),
    # Forward-only steps of six devices per round take long: the fleets are compared over half of the rounds.
    "hybrid-by-examples": Variant(0.5, "half", {"merging": "examples"}, fleet="hybrid", rounds_factor=0.5),
    "hybrid-by-noise": Variant(0.5, "half", {"merging": "noise"}, fleet="hybrid", rounds_factor=0.5),
    "few-backprop": dataclasses.replace(HALF, fleet="few-backprop", rounds_factor=0.5),
    "forward": dataclasses.replace(HALF, fleet="forward", rounds_factor=0.5),
}
PERSONAL = ("full-personal", "half-personal")
MINILM_PLAN: Plan = (
    ("movie", ("full", "half", "third", "three-quarters")),
    ("movie", PERSONAL),
    ("dirichlet-0.1", ("full", "half", *PERSONAL)),
    (
        "movie",
        ("half-rescaled", "full-half-the-rounds", "half-incremental", "half-decay", "half-normal", "half-bernoulli"),
    ),
    ("movie", ("hybrid-by-examples", "hybrid-by-noise", "few-backprop", "forward")),
    ("dirichlet-1", ("full", "half", "half-personal")),
    ("movie", ("half-personal-random", "half-personal-depth", "half-personal-fisher", "half-personal-update")),
    ("dirichlet-10", ("full", "half", "half-personal")),
    ("movie", ("half-twice-the-rounds",)),
)
SMOLLM2_PLAN: Plan = (
    ("movie", ("full", "half", "full-half-the-rounds")),
    ("movie", ("half-rescaled", "half-incremental")),
)
QUICK_PLAN: Plan = (("movie", ("full", "half", "half-personal")),)


@dataclass(frozen=True)
class VariantPlan:
    """What is compared with one model.

    Attributes:
        setup: the size of the comparison.
        stld: fields of ``[stld]`` that all variants have.
        step: fields of ``[step]``.
        rates: learning rates of backpropagation that are tried.
        variants: what runs.
    """

    setup: Setup
    stld: dict[str, Any]
    step: dict[str, Any]
    rates: tuple[float, ...]
    variants: Plan

    def shares(self) -> list[float]:
        """Return the shares of layers for which the bundle needs training graphs."""
        return sorted({1.0, *(VARIANTS[name].share for _, names in self.variants for name in names)})


PLANS = {
    "minilm": VariantPlan(
        Setup(
            export_flags=("--task", "classify-head", "--logit-scale", "10", "--split", "6"),
            layers=6,
            rounds=30,
            eval_every=3,
            held_out_movies=130,
            rows_per_movie=2,
            start_movies=64,
        ),
        stld={"steps": 4, "batch_size": 8},
        step={"back_perturbations": 64, "learning_rate": 0.03},
        rates=(0.0015, 0.003, 0.006),
        variants=MINILM_PLAN,
    ),
    "smollm2": VariantPlan(
        Setup(
            export_flags=RECIPES["smollm2"].export_flags,
            layers=30,
            rounds=6,
            eval_every=2,
            held_out_movies=120,
        ),
        stld={"steps": 3, "batch_size": 8},
        step={"back_perturbations": 4, "learning_rate": 0.04},
        rates=(0.001,),
        variants=SMOLLM2_PLAN,
    ),
}
