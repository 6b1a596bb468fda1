"""Traces one step of continuing a text, with its weights and its cache as inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from edge_runtime.bundle.decode import LOGITS, NEW_TOKENS, PAST
from export.errors import compiling
from export.model.decode_step import DecodeStep, example_past
from export.quiet import quiet
from export.trace.lift import Lifted, as_module, program_state
from export.trace.loss import forget_traces

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Shape
    from export.model.build import ExportModel

NO_DECODE_HINT = "use --no-decode: devices then continue prompts without a cache"
_PAST_TOKENS, _NEW_TOKENS = 5, 3
"""Tokens of the example that is traced: neither 0 nor 1, and different, so that no size is taken for another."""


@dataclass(frozen=True)
class LiftedDecode:
    """The traced step.

    Attributes:
        lifted: the program; its first output is the logits, and the further ones the cache.
        examples: a tensor for each of its inputs, by the input's name.
        cache: for each input of the cache, the output that takes its place in the next run.
    """

    lifted: Lifted
    examples: dict[str, torch.Tensor]
    cache: dict[str, str]

    def sizes(self, name: str) -> Shape:
        """Return the sizes of an input or output; dynamic ones have their names."""
        if name == "input_ids":
            return [1, NEW_TOKENS]
        if name in self.cache or name in self.cache.values():
            value = self.lifted.outputs[self.cache.get(name, name)]
            return [1, int(value.shape[1]), PAST, int(value.shape[3])]
        value = self.lifted.outputs[name] if name in self.lifted.outputs else self.examples[name]
        return [int(size) for size in value.shape]


def trace_decode(model: ExportModel) -> LiftedDecode:
    """Trace a causal model's step with a cache of any length, also none, and any number of new tokens.

    Raises:
        ExportError: torch.export cannot trace it.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, model.folder.vocab_size, (1, _PAST_TOKENS + _NEW_TOKENS), generator=generator)
    automatic = torch.export.Dim.AUTO
    forget_traces()
    with compiling("torch.export cannot trace a step with a cache", NO_DECODE_HINT), quiet(), torch.no_grad():
        past, new = example_past(model.peft_model, ids[:, :_PAST_TOKENS]), ids[:, _PAST_TOKENS:]
        program = torch.export.export(
            DecodeStep(model.peft_model).eval(),
            (new, past),
            dynamic_shapes=({1: automatic}, tuple({2: automatic} for _ in past)),
            strict=False,
        )
    output = next(node for node in program.graph.nodes if node.op == "output")
    cached = [f"{kind}_{layer}" for layer in range(len(past) // 2) for kind in ("keys", "values")]
    names = ["input_ids", *(f"past_{name}" for name in cached)]
    module, inputs = as_module(program, list(output.args[0]), names)
    values = dict(zip([LOGITS, *cached], (node.meta["val"] for node in output.args[0]), strict=True))
    lifted = Lifted(module, inputs, values, program_state(program), boundaries={}, back_parameters={})
    examples = lifted.examples(dict(zip(names, (new, *past), strict=True)))
    return LiftedDecode(lifted, examples, {f"past_{name}": name for name in cached})
