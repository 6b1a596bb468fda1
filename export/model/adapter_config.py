"""What a PEFT adapter's configuration asks for: what Covey computes as PEFT does, and what has to be merged first."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from export.model.adapter_table import AdapterRow, refusal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from export.source.folder import ModelFolder

_HONOURED = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "bias", "lora_bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    *("init_lora_weights", "fan_in_fan_out"),
}
"""Fields with which PEFT builds the modules that are traced."""
_WITHOUT_EFFECT = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "runtime_config", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
}
"""Fields about where an adapter comes from, or about its training or initialisation alone."""
_KEEPS_THE_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Values of ``init_lora_weights`` that leave the base model's weights as they are."""
_FIELDS_NOT_MERGEABLE = {"layer_replication", "alora_invocation_tokens", "arrow_config"}
"""With these, an adapter does more than to change weights."""
_NOT_MERGEABLE = {"XLORA", "POLY", "SHADOW", "OSF"}
_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}
_ENDINGS = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
}


def check_config(config: Mapping[str, Any], folder: ModelFolder) -> None:
    """Check that Covey computes all that an adapter's configuration asks for.

    A field that Covey doesn't know, perhaps of a newer PEFT, is refused unless it is empty; PEFT would ignore it.

    Args:
        config: the content of ``adapter_config.json``.
        folder: the folder with the adapter.

    Raises:
        AdapterError: a field is refused; the error has a row for each.
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        rows = [AdapterRow("peft_type", None, None, "refused", f"is {kind}, not LORA")]
        raise refusal(rows, f"the adapter in {folder.adapter} is {kind}, not LORA", _other_type(config, folder))
    rows = [AdapterRow(field, None, None, "refused", why) for field, why in _refused_fields(config).items()]
    if rows:
        fixed = [row.part for row in rows if row.part in _FIELDS_NOT_MERGEABLE]
        hint = f"train an adapter without {fixed[0]}: it cannot be merged" if fixed else merge_hint(config, folder)
        raise refusal(rows, f"the adapter's {rows[0].part}: {rows[0].why}", hint)


def _refused_fields(config: Mapping[str, Any]) -> dict[str, str]:
    defaults = {field.name: field.default for field in dataclasses.fields(LoraConfig)}
    refused = {}
    for field, value in config.items():
        empty = value in (None, False, "", [], {}) or (field in defaults and value == defaults[field])
        if field in _HONOURED | _WITHOUT_EFFECT or empty:
            continue
        if field in defaults:
            refused[field] = f"a kind of LoRA that Covey does not compute with ({_short(value)})"
        else:
            refused[field] = f"unknown to this version of PEFT ({_short(value)})"
    start = config.get("init_lora_weights", True)
    if start not in _KEEPS_THE_BASE:
        refused["init_lora_weights"] = f"{start} changes the model's own weights, which the adapter does not hold"
    return refused


def _short(value: object, longest: int = 40) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def _other_type(config: Mapping[str, Any], folder: ModelFolder) -> str:
    """Return what to do about an adapter of another type than LoRA."""
    kind = str(config.get("peft_type"))
    tuner = PEFT_TYPE_TO_TUNER_MAPPING.get(PeftType[kind]) if kind in PeftType.__members__ else None
    if kind in _NOT_MERGEABLE or not hasattr(tuner, "merge_and_unload"):
        return f"{kind} cannot be merged into a model either: train a LoRA adapter on this model"
    return merge_hint(config, folder)


def merge_hint(
    config: Mapping[str, Any], folder: ModelFolder, *, vocabulary: int | None = None, labels: int | None = None
) -> str:
    """Return what to do about an adapter that Covey cannot continue with: the Python call that merges it.

    Args:
        config: the content of ``adapter_config.json``.
        folder: the folder with the adapter.
        vocabulary: rows to which the model's embeddings have to be resized before.
        labels: number of labels of a head that the adapter holds, and the model does not.
    """
    ending = next((e for name in folder.config.architectures or [] for e in _ENDINGS if name.endswith(e)), "")
    auto = _CLASSES.get(str(config.get("task_type")), _ENDINGS.get(ending, "AutoModel"))
    beside = folder.adapter == folder.path
    adapter = "ADAPTER" if beside else str(folder.adapter)
    gguf = f", gguf_file={folder.gguf_file!r}" if folder.gguf_file else ""
    options = gguf + (f", num_labels={labels}" if labels is not None else "")
    resize = f"model.resize_token_embeddings({vocabulary}); " if vocabulary is not None else ""
    own_tokenizer = folder.adapter is not None and (folder.adapter / "tokenizer.json").is_file()
    tokenizer = repr(str(folder.adapter)) if own_tokenizer else repr(str(folder.path)) + gguf
    return (
        ("move the adapter_* files into a folder of their own, ADAPTER, then " if beside else "")
        + "merge the adapter into the model with PEFT, in Python: from peft import PeftModel; "
        + f"from transformers import AutoTokenizer, {auto}; "
        + f"model = {auto}.from_pretrained({str(folder.path)!r}{options}); "
        + resize
        + f"PeftModel.from_pretrained(model, {adapter!r}).merge_and_unload().save_pretrained('MERGED'); "
        + f"AutoTokenizer.from_pretrained({tokenizer}).save_pretrained('MERGED'); then export MERGED"
    )
