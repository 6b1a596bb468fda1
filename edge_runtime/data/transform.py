"""The owner's own Python for rows (``[data] transform``): it gets each row and returns the row to use.

It runs in the device's process, with the device's rights: only edge.toml can name it, no server and no job.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge_runtime.data.problems import Fault, Likely
from edge_runtime.data.records import Records
from edge_runtime.errors import DataError, cause_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    Transform = Callable[[dict[str, Any]], Mapping[str, Any] | None]

LIKELY = {
    "transform": Likely("the transform does not expect such rows", "correct the function that [data] transform names")
}
"""What is likely to be behind a kind of fault."""


def beside(transform: str, folder: Path) -> str:
    """Return a transform whose module is a file in a folder (``mine.py``) by that file's path, another one as it is.

    Args:
        transform: ``module:function``; empty: none.
        folder: where edge.toml is.
    """
    module, _, function = transform.rpartition(":")
    file = folder / (module.replace(".", "/") + ".py")
    return f"{file}:{function}" if module and file.is_file() else transform


def transformed(records: Records, transform: str, path: Path) -> Records:
    """Return records as a transform returns them; a record for which it returns None is left out, and counted.

    Args:
        records: the source's.
        transform: ``module:function``, of a module that can be imported or of a ``.py`` file by its path.
        path: the source, for messages.

    Raises:
        DataError: there is no such module or function.
    """
    function = _function(transform)
    name = f"{Path(transform.rpartition(':')[0]).name}:{transform.rpartition(':')[2]}"

    def items() -> Iterator[tuple[int, Mapping[str, Any] | Fault]]:
        left_out = 0
        for number, record in records.items:
            result = record if isinstance(record, Fault) else _applied(function, name, record)
            if result is None:
                left_out += 1
            else:
                yield number, result
        if left_out:
            records.notes.append(f"{name} leaves out {left_out} rows of {path.name}")

    return Records(items(), f"{records.form}, through {name}", records.notes, records.places)


def _applied(function: Transform, name: str, record: Mapping[str, Any]) -> Mapping[str, Any] | Fault | None:
    try:
        result = function(dict(record))
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 the owner's code may raise anything
        return Fault(f"{name} raised {_cause(error)}", "transform")
    if result is not None and not isinstance(result, dict):
        return Fault(f"{name} returned {type(result).__name__}, neither a dict nor None", "transform")
    return result


def _cause(error: BaseException) -> str:
    words = cause_of(error) if isinstance(error, Exception) else str(error)
    return f"{type(error).__name__}: {words}"


def _function(transform: str) -> Transform:
    module_name, _, function_name = transform.rpartition(":")
    try:
        module = _from_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # the owner's code may raise anything
        raise DataError(
            f"[data] transform: cannot import {module_name}: {_cause(error)}",
            "put the module beside edge.toml, or install it where covey-edge is installed; then correct its error",
            facts="the module of its transform cannot be imported",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(
            f"[data] transform: {module_name} has no function {function_name}",
            f"define it: def {function_name}(row): return row",
            facts="its transform has no such function",
        )
    return cast("Transform", function)


def _from_file(path: Path) -> ModuleType:
    """Run a Python file anew, each time the rows are read, so that a change of it counts with the rows' next change."""
    spec = importlib.util.spec_from_file_location(f"covey_transform_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
