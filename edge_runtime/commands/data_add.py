"""``covey-edge data add``: add labelled rows to this device, which the next round uses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.data.problems import counted
from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    import argparse


def add_data_add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``data add``."""
    add = commands.add_parser("add", help="add labelled rows, or correct some", description=_data_add.__doc__)
    add.add_argument(
        "--config", type=Path, default=Path("edge.toml"), metavar="edge.toml", help="the device (default: %(default)s)"
    )
    add.add_argument("--label", help="the label of the texts")
    add.add_argument("text", nargs="*", help="texts of this label; without any: rows as JSON Lines on standard input")
    output.add_format(add)
    add.set_defaults(run=_data_add)


def _data_add(args: argparse.Namespace) -> int:
    """Add rows to the device's corrections, all or none. A row whose text is there already takes its place.

    covey-edge data add --label good "A film one remembers"; or many: covey-edge data add < more.jsonl

    The owner's file of rows is not touched. The next round uses them; the oldest go where there are too many
    ([data] most_corrections).
    """
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.data.corrections import add_corrections, check_task
    from edge_runtime.store.model import task_in_use
    from edge_runtime.store.store import Store

    config = read_edge_config(args.config)
    records = _records(args)
    task = task_in_use(Store(Path(config.state_dir)))
    if task is not None:
        check_task(records, task, config.data.label_names)
    path = Path(config.data.corrections)
    added = add_corrections(path, records, config.data.most_corrections)
    values = {name: getattr(added, name) for name in ("added", "replaced", "repeated", "dropped", "rows")}
    words = [f"{counted(added.added, 'row')} added", f"{added.replaced} replaced", f"{added.repeated} there already"]
    if added.dropped:
        words.append(f"the {counted(added.dropped, 'oldest row')} dropped")
    output.emit(
        args, {"path": str(path), **values}, f"{', '.join(words)}; {path} has {counted(added.rows, 'correction')}"
    )
    return 0


def _records(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the rows of the command line, or of standard input.

    Raises:
        ConfigError: texts without a label, or a label without a text.
        DataError: a line is no JSON object, or there is none.
    """
    if args.text and args.label is None:
        raise ConfigError("the texts have no label", "give --label LABEL")
    if args.text:
        return [{"text": text, "label": args.label} for text in args.text]
    if args.label is not None:
        raise ConfigError("there is no text for the label", 'write it behind the label: --label good "A film …"')
    records = []
    for number, line in enumerate(sys.stdin, 1):
        if line.strip():
            records.append(_object(line, number))
    if not records:
        raise DataError(
            "there are no rows on standard input", "write one JSON object a line", facts="there are no rows"
        )
    return records


def _object(line: str, number: int) -> dict[str, Any]:
    facts = f"line {number} is no JSON object"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{facts}: {error}", 'write {"text": …, "label": …}', facts=facts) from error
    if not isinstance(record, dict):
        raise DataError(facts, 'write {"text": …, "label": …}', facts=facts)
    return record
