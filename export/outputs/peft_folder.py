"""The finished adapter as a PEFT folder: the files that PEFT reads, without those of Covey's ledger.

It names the folder of its base model, so that PEFT's Auto classes and ``covey export`` take it as it is.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from export.errors import ExportError
from export.finished import WEIGHTS_FILE, load_finished
from export.model.rebuild import FILE
from export.outputs.folder import new_folder
from export.source.folder import look_at

if TYPE_CHECKING:
    from pathlib import Path

_CONFIG = "adapter_config.json"
_FILES = (_CONFIG, "adapter_model.safetensors", FILE)


def write_peft(adapter: Path, model_dir: Path, out: Path) -> None:
    """Write a finished adapter as a PEFT folder, once it has been loaded on its base model.

    Args:
        adapter: see load_finished.
        model_dir: see load_finished.
        out: the folder to make.

    Raises:
        ExportError: see load_finished; or every weight was trained.
        StorageError: see new_folder.
    """
    if (adapter / WEIGHTS_FILE).exists():
        raise ExportError("every weight was trained, so there is no adapter", "use --to merged")
    load_finished(adapter, model_dir)
    with new_folder(out) as partial:
        for name in _FILES:
            shutil.copyfile(adapter / name, partial / name)
        base = {"base_model_name_or_path": str(look_at(model_dir).path.resolve())}
        config = json.loads((adapter / _CONFIG).read_text()) | base
        (partial / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
