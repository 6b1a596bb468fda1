"""What tests of the exporter share: the command, its flags, adapters in which every tensor matters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from parity import finished_folder
from tiny_models import make_model

from edge_runtime.engines.golden import golden_adapter
from export.model.options import LoraOptions
from server.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector

HEAD = ("--task", "classify-head", "--labels", "bad,good", "--split", "1")
PROMPT = ("--task", "classify-prompt", "--labels", "bad,good", "--split", "1")
TEMPLATE = ("--template", "{text} It was")
NEW_LORA = LoraOptions(4, 8.0, ["query", "value"], None, ["B"], seed=0)


def export(model_dir: Path, out: Path, *flags: str) -> int:
    """Run ``covey export`` and return its exit code."""
    arguments = ["export", str(model_dir), "--out", str(out), "--max-tokens", "16", *flags]
    return main(arguments)


def generic_adapter(bundle: Bundle) -> FloatVector:
    """Return an adapter in which every trainable tensor matters."""
    golden = bundle.manifest.golden
    return golden_adapter(bundle.initial_adapter(), msgspec.structs.replace(golden, seed=77, scale=0.02))


def model_dir_of(bundle: Bundle, kind: str) -> Path:
    """Return the folder of the tiny model that ``tiny_export`` has exported."""
    return bundle.path.parents[1] / "models" / kind


def finished_beside_model(bundle: Bundle, folder: Path) -> Path:
    """Make a tiny BERT's folder with a finished adapter of Covey's in it."""
    make_model("bert", folder)
    for path in finished_folder(bundle, generic_adapter(bundle), folder / "finished").iterdir():
        path.rename(folder / path.name)
    return folder
