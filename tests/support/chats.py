"""Chat templates of several styles, each with what the assistant writes in it said by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from edge_runtime.data.chat import ChatTemplate, Message

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Pieces = "list[tuple[str, bool]]"
"""A rendered conversation in pieces, each with whether the assistant wrote it."""

_TURN = "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}"
_ASK = "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
TURNS = f"{{% for m in messages %}}{_TURN}{{% endfor %}}{_ASK}"
TAGGED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '<|end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|end|>' }}{% endif %}{{ '\\n' }}"
    f"{{% endfor %}}{_ASK}"
)
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content | trim + ' ' + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% set ns = namespace(asked=-1) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{{ '<|' + m.role + '|>\\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.asked %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    f"{{{{ m.content + '<|end|>\\n' }}}}{{% endfor %}}{_ASK}"
)


def of_turns(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return what TURNS and TAGGED write."""
    pieces = []
    for m in messages:
        pieces += [(f"<|{m.role}|>\n", False), (f"{m.content}<|end|>", m.role == "assistant"), ("\n", False)]
    return pieces


def of_instructions(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return what INSTRUCTIONS writes."""
    pieces = [("<s>", False)]
    for m in messages:
        text = m.content.strip()
        pieces.append((f" {text} </s>", True) if m.role == "assistant" else (f"[INST] {text} [/INST]", False))
    return pieces


def of_thinking(messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """Return what THINKING writes: reasoning, which is empty, before the answers that follow the last question."""
    asked = max((index for index, m in enumerate(messages) if m.role == "user"), default=-1)
    pieces = []
    for index, m in enumerate(messages):
        is_answer = m.role == "assistant"
        thought = "<think>\n\n</think>\n\n" if is_answer and index > asked else ""
        pieces += [(f"<|{m.role}|>\n", False), (f"{thought}{m.content}<|end|>", is_answer), ("\n", False)]
    return pieces


STYLES = {
    "turns": (TURNS, of_turns),
    "tagged": (TAGGED, of_turns),
    "instructions": (INSTRUCTIONS, of_instructions),
    "thinking": (THINKING, of_thinking),
}


def template_of_style(style: str) -> ChatTemplate:
    """Return a template of STYLES."""
    return ChatTemplate(STYLES[style][0], {"bos_token": "<s>", "eos_token": "</s>"})


def letters(path: Path, *, begins: bool = False) -> Path:
    """Write a tokenizer of a token for each byte, with special tokens; ``begins``: it puts <s> before a text."""
    special = ["<pad>", "<s>", "</s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, []))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if begins:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path))
    return path
