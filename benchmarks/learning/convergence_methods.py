"""What convergence.py compares: each method's settings and learning rates, and each model's setup."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.comparison import Setup
from server.demo.recipes import RECIPES


@dataclass(frozen=True)
class Method:
    """A row of the table: a method with its settings.

    Attributes:
        method: its name in ``job.toml``.
        steps: local steps per round, such that a round costs every method about the same.
        step: fields of ``[step]``, without the learning rate.
        rates: learning rates that are tried.
        split: the split; None: the plan's split.
        job: further fields of the job.
        depends_on_seed: whether seeds make a difference; otherwise there is one run.
        eval_every: rounds from one evaluation to the next on ``validation`` and on ``test`` rows; where it does not
            name the rows: the setup's. What a method spent until it reached a loss is read off its evaluations.
        export_flags: of ``covey export``, after the setup's: the method has a bundle of its own. Empty: it has that of
            the others.
        soonest_of: the method whose tuning runs give the learning rate: that with which it reached MeZO's loss for the
            fewest forward passes. None: the method is tuned for the loss at its end.
    """

    method: str
    steps: int
    step: dict[str, Any]
    rates: tuple[float, ...]
    split: int | None = None
    job: dict[str, Any] = field(default_factory=dict)
    depends_on_seed: bool = True
    eval_every: dict[str, int] = field(default_factory=dict)
    export_flags: tuple[str, ...] = ()
    soonest_of: str | None = None


@dataclass(frozen=True)
class MethodPlan:
    """What is compared with one model.

    Attributes:
        setup: the size of the comparison.
        split: the split of methods that name none.
        batch_size: rows per step.
        methods: the methods with LoRA, by the name of their row; see methods_of.
        output_layers: what the output behind the layers costs, in layers; it belongs to the back block.
        is_causal: whether rows are a prompt and its completion.
    """

    setup: Setup
    split: int
    batch_size: int
    methods: dict[str, Method]
    output_layers: float = 0.0
    is_causal: bool = False


# Learning rates of methods that divide by the root mean square, or by the standard deviation, of the loss differences.
RMS = (0.005, 0.015, 0.04)
STD = (0.01, 0.03, 0.09)
PLAIN = (0.001, 0.003, 0.01)
FULL_RMS, FULL_STD = (0.003, 0.009, 0.03), (0.003, 0.009, 0.03)
FULL_EPS = 1e-3

# A method that reaches a loss within two rounds of its rivals is evaluated in each of its own, and so are the rivals
# that it is compared with; rates are chosen by the last evaluation, which needs no others.
EACH_ROUND = {"validation": 1, "test": 1}
RIVAL = {"test": 1}

# About 8 forward equivalents per device and round on SmolLM2 (split 20 of 30) and on MiniLM (split 4 of 6).
COMMON = {
    "backprop": Method("backprop", 2, {}, (0.0003, 0.001, 0.003)),
    "mezo": Method("mezo", 4, {"front_perturbations": 1, "normalize": "rms"}, RMS, eval_every=RIVAL),
    "mezo-plain": Method("mezo", 4, {"front_perturbations": 1}, PLAIN),
    "decomfl": Method("decomfl", 2, {"front_perturbations": 3, "normalize": "rms", "eps": 0.01}, RMS, eval_every=RIVAL),
    "fedkseed": Method("fedkseed", 4, {"front_perturbations": 1, "normalize": "rms"}, RMS),
    "fzoo": Method("fzoo", 1, {"front_perturbations": 7}, STD),
    "spzo": Method("spzo", 2, {"back_perturbations": 4}, RMS),
    "spzo-plain": Method("spzo", 2, {"back_perturbations": 4, "normalize": "none"}, PLAIN),
    "spzo-loo": Method("spzo", 2, {"back_perturbations": 4, "leave_one_out": True}, RMS),
    "spzo-clean": Method("spzo-clean", 2, {"back_perturbations": 2}, RMS),
    "spzo-fzoo": Method("spzo-fzoo", 2, {"back_perturbations": 7}, STD),
    "spzo-shared": Method("spzo", 2, {"back_perturbations": 4, "shared_directions": True}, RMS),
    "spzo-momentum": Method("spzo", 2, {"back_perturbations": 4}, (0.003, 0.01, 0.02), job={"server_momentum": 0.7}),
    "probe": Method("probe", 1, {}, (1.0,), depends_on_seed=False),
}
QUICK = ("mezo", "spzo", "decomfl")
CLASSIFIERS = ("backprop", "probe")
"""Compared where rows have labels."""
LORA_ONLY = ("backprop", "probe", "mezo-plain", "spzo-plain")
"""Not compared where every weight is trained: backpropagation, probes, and methods that do not normalize."""


# Larger rates, for few parameters behind a late split and many directions in each step.
LATE_RMS = (0.03, 0.1, 0.3)
PROMPT_RMS = (0.3, 1.0, 3.0)


def frozen(
    split: int | None,
    steps: int,
    back_perturbations: int,
    rates: tuple[float, ...] = LATE_RMS,
    front: str = "frozen",
) -> Method:
    """Return a method that keeps each row's front activation: a row's front is run once, in its first step.

    Steps are such that a round costs at most what it costs the other methods, rows that are new included.
    """
    return Method(
        "spzo",
        steps,
        {"back_perturbations": back_perturbations},
        rates,
        split=split,
        job={"front": front},
        eval_every=EACH_ROUND,
    )


def with_head(layers: int, late: Method) -> dict[str, Method]:
    """Return the methods of a model with a head of its own.

    With the split behind the last layer, only the head is perturbed again and again: back passes cost next to nothing.

    Args:
        layers: layers of the model.
        late: ``spzo-late``, which keeps the activations in front of the last layer.
    """
    return {
        **COMMON,
        "spzo-frozen": frozen(None, 2, 4, RMS),
        "spzo-late": late,
        "spzo-head": Method("spzo", 4, {"back_perturbations": 64}, RMS, split=layers),
        "spzo-frozen-head": frozen(layers, 4, 64),
        "spzo-thaw": frozen(layers, 4, 64, front="train-after:4"),
    }


NORM = dataclasses.replace(frozen(30, 4, 64), export_flags=("--train-norm", "--split", "30"))
"""Trains SmolLM2's final norm, to a prompt what a head is to an encoder: 576 weights, and next to no computing."""

PLANS = {
    "minilm": MethodPlan(
        Setup(
            export_flags=("--task", "classify-head", "--logit-scale", "10", "--split", "4,5,6"),
            layers=6,
            rounds=16,
            eval_every=2,
            held_out_movies=150,
        ),
        split=4,
        batch_size=16,
        methods=with_head(6, late=frozen(5, 2, 8)),
    ),
    "mpnet": MethodPlan(
        Setup(
            export_flags=("--task", "classify-head", "--logit-scale", "10", "--split", "8,11,12"),
            layers=12,
            rounds=8,
            eval_every=2,
            held_out_movies=120,
        ),
        split=8,
        batch_size=16,
        methods=with_head(12, late=frozen(11, 2, 16)),
    ),
    "smollm2": MethodPlan(
        Setup(
            export_flags=(*RECIPES["smollm2"].export_flags, "--split", "20,28,29"),
            layers=30,
            rounds=8,
            eval_every=2,
            held_out_movies=120,
        ),
        split=20,
        batch_size=8,
        methods={
            **{name: method for name, method in COMMON.items() if name != "probe"},  # a prompt has no head
            "spzo-frozen": frozen(None, 2, 4, RMS),
            "spzo-late": frozen(28, 1, 16, PROMPT_RMS),
            "spzo-last": frozen(29, 1, 32, PROMPT_RMS),
            "spzo-norm": NORM,
            "spzo-norm-soon": dataclasses.replace(NORM, soonest_of="spzo-norm"),
            "decomfl-soon": dataclasses.replace(COMMON["decomfl"], soonest_of="decomfl"),
        },
    ),
    # Next-token prediction of the rows' texts, each behind its label. The output embedding has 49,152 × 576 weights, a
    # layer 3.54 million: a batch passes 38 layers, of which those behind split 29 are 9. "Accuracy" is of tokens.
    "smollm2-lm": MethodPlan(
        Setup(
            export_flags=("--task", "causal-lm", "--split", "20,29"),
            layers=30,
            rounds=8,
            eval_every=2,
            held_out_movies=60,
        ),
        split=20,
        batch_size=8,
        methods={
            **{name: method for name, method in COMMON.items() if name not in CLASSIFIERS},
            "spzo-last": frozen(29, 2, 6, PROMPT_RMS),
        },
        output_layers=8.0,
        is_causal=True,
    ),
}


def methods_of(plan: MethodPlan, mode: str) -> dict[str, Method]:
    """Return the methods of a plan in a mode: where every weight is trained, a smaller ε and other learning rates."""
    if mode == "lora":
        return plan.methods
    return {
        name: dataclasses.replace(
            method,
            step={**method.step, "eps": FULL_EPS},
            rates=FULL_STD if method.rates == STD else FULL_RMS,
        )
        for name, method in plan.methods.items()
        if name not in LORA_ONLY
    }
