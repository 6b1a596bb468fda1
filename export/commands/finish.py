"""``covey finish``: a finished adapter in the form that another program loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime import output
from edge_runtime.errors import ConfigError

FORMS = {
    "peft": "a PEFT folder: PeftModel.from_pretrained(base, OUT)",
    "merged": "a Hugging Face folder without LoRA: from_pretrained(OUT)",
    "onnx": "model.onnx with its weights in it: input_ids, attention_mask → logits",
    "pte": "model.pte for ExecuTorch with XNNPACK: input_ids, attention_mask → logits",
    "gguf": "model.gguf for llama.cpp, without LoRA: llama-cli -m OUT/model.gguf",
    "gguf-lora": "adapter.gguf for llama.cpp: llama-cli -m BASE.gguf --lora OUT/adapter.gguf",
}


def add_finish_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``finish``."""
    parser = commands.add_parser(
        "finish",
        help="a finished adapter in the form that another program loads",
        description=_finish.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "adapter", type=Path, metavar="FINISHED", help="the folder that covey serve or covey run wrote at a job's end"
    )
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="the folder that was exported")
    parser.add_argument(
        "--to", required=True, choices=list(FORMS), help="; ".join(f"{form}: {what}" for form, what in FORMS.items())
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--max-tokens", type=int, help="pte: most tokens of a row (default: 128, or what the model can take)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float16",
        help="gguf: of the matrices (default: %(default)s)",
    )
    output.add_format(parser)
    parser.set_defaults(run=_finish)


def _finish(args: argparse.Namespace) -> int:
    """Write a finished adapter, or a finished model, in the form that another program loads.

    covey finish covey-server/jobs/first-job/adapter --model ./my-model --to merged --out merged
    covey finish covey-server/jobs/first-job/adapter --model ./my-model --to onnx --out onnx
    covey finish covey-server/jobs/first-job/adapter --model ./my-model --to gguf --dtype bfloat16 --out gguf
    """
    try:
        from export.model.rebuild import read_rebuild
        from export.outputs.gguf_lora import write_gguf_lora
        from export.outputs.gguf_model import write_gguf_model
        from export.outputs.merged import write_merged
        from export.outputs.onnx_file import write_onnx
        from export.outputs.peft_folder import write_peft
    except ImportError as error:
        raise ConfigError(f"the exporter is not installed ({error})", "pip install 'covey[export]'") from error
    given = (args.adapter, args.model, args.out)
    values: dict[str, object] = {"out": str(args.out), "to": args.to}
    said = ""
    if args.to == "peft":
        write_peft(*given)
    elif args.to == "merged":
        write_merged(*given)
    elif args.to == "onnx":
        values["largest_difference"] = off = write_onnx(*given)
        said = f"; ONNX Runtime's logits are within {off:.1e} of PyTorch's"
    elif args.to == "pte":
        values["size_bytes"] = size_bytes = _write_pte(*given, args.max_tokens)
        said = f"; {size_bytes / 1e6:.1f} MB"
    elif args.to == "gguf":
        values["size_bytes"] = size_bytes = write_gguf_model(*given, args.dtype)
        said = f"; {size_bytes / 1e6:.1f} MB"
    else:
        values["matrices"] = count = write_gguf_lora(*given)
        said = f"; {count} pairs of matrices"
    values["trained_on"] = base = read_rebuild(args.adapter).get("base", "float32")
    if base != "float32":
        # The quantised weights are in the bundle only: every form is made of the weights in the model's folder.
        said += f"; the adapter was trained on an {base} base, and this has or expects the weights of {args.model}"
    output.emit(args, values, f"{args.out} is {FORMS[args.to]}{said}")
    return 0


def _write_pte(adapter: Path, model_dir: Path, out: Path, max_tokens: int | None) -> int:
    try:
        from export.outputs.pte_file import write_pte
    except ImportError as error:
        raise ConfigError(f"ExecuTorch is not installed ({error})", "pip install 'covey[executorch]'") from error
    return write_pte(adapter, model_dir, out, max_tokens)
