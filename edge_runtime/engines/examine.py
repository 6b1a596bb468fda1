"""Examines a version of the model before it is used: its outputs are numbers, and how well it does on own rows.

Own rows are those that the owner keeps for this ([updates] own_rows in edge.toml); only their share of right answers
and their number leave this file, and no error of it quotes one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.adapter import map_adapter
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.manifest import output_names
from edge_runtime.data.config import DataConfig
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.child import Patience, answer, run_child
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_cases
from edge_runtime.engines.predict import right_answers
from edge_runtime.errors import BundleError, ConfigError, CoveyError, DataError, StorageError, TrainingError

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

_PATIENCE = Patience(limit_s=3600.0)


class Examined(msgspec.Struct, frozen=True):
    """What an examination has found.

    Attributes:
        accuracy: share of right answers on the own rows, 0 to 1; of causal-lm, of right tokens. None: no rows.
        rows: number of own rows.
    """

    accuracy: float | None = None
    rows: int = 0


def examine(
    bundle: Bundle, adapter: Path | None, own_rows: DataConfig | None, engines: Engines, *, contained: bool
) -> Examined:
    """Examine an adapter with its bundle, whose hashes were checked.

    Args:
        bundle: the bundle.
        adapter: the adapter's file; None: the bundle's own.
        own_rows: held-out rows of this device's owner; None: there are none.
        engines: run the graphs.
        contained: whether it happens in a child process: a library that ends its process does not end this one.

    Raises:
        BundleError: an output is not a number, or the bundle cannot be run, or it is not for the own rows.
        ConfigError: the child was ended.
        DataError: the own rows cannot be read.
    """
    if not contained:
        return _examine(bundle, adapter, own_rows, engines)
    arguments = (
        str(bundle.path),
        "" if adapter is None else str(adapter),
        msgspec.json.encode(own_rows).decode(),
        engines.runtime,
        str(engines.threads),
        ",".join(engines.providers),
    )
    doing = f"examining bundle {bundle.sha256[:12]}"
    found = run_child(__name__, *arguments, doing=doing, patience=_PATIENCE)
    if found.what:
        kinds = {error.exit_code: error for error in (BundleError, StorageError, TrainingError, DataError)}
        raise kinds.get(found.exit_code, ConfigError)(found.what, found.hint)
    return msgspec.convert(found.values, Examined)


def _examine(bundle: Bundle, adapter: Path | None, own_rows: DataConfig | None, engines: Engines) -> Examined:
    manifest = bundle.manifest
    theta = bundle.initial_adapter() if adapter is None else map_adapter(adapter, total_size(manifest.parameters))
    predictor = engines.make_predictor(bundle)
    case, output = next(golden_cases(bundle)), output_names(manifest.task.kind)[0]
    if not np.isfinite(predictor.outputs(theta, case.batch)[output]).all():
        raise BundleError("the model's outputs are not finite with this adapter", "export or train it again")
    if own_rows is None:
        return Examined()
    rows = load_rows(bundle, own_rows)
    right, answers = right_answers(predictor, theta, rows, len(manifest.task.labels))
    return Examined(right / answers, len(rows))


def _in_child(
    path: str,
    adapter: str,
    own_rows: str,
    runtime: Any,  # noqa: ANN401 the name of a runtime
    threads: str,
    providers: str,
) -> dict[str, Any]:
    data = msgspec.json.decode(own_rows, type=DataConfig | None)
    try:
        bundle, engines = open_bundle(Path(path)), Engines(runtime, int(threads), tuple(providers.split(",")))
        found = _examine(bundle, Path(adapter) if adapter else None, data, engines)
    except (CoveyError, MemoryError, OSError, ImportError):
        raise
    except Exception as error:  # a traceback would end up in a log, and may quote rows
        kind = type(error).__name__
        raise BundleError(f"the version cannot be examined: {kind}", "look at the new version on the server") from error
    return {"accuracy": found.accuracy, "rows": found.rows}


if __name__ == "__main__":
    answer(lambda: _in_child(*sys.argv[1:7]))
