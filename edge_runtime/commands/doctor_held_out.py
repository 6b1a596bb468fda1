"""What doctor says of the model's accuracy on held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.commands.finding import Finding, problem
from edge_runtime.errors import StorageError
from edge_runtime.store.accuracies import known_held_out

if TYPE_CHECKING:
    from edge_runtime.agent.config import EdgeConfig


def held_out_finding(config: EdgeConfig) -> Finding:
    """Return the last accuracy on held-out rows: a warning where it has fallen."""
    none = {"accuracy": None, "rows": None, "best": None, "has_fallen": None}
    if config.updates.own_rows is None:
        return Finding("held-out", "absent", "no rows to measure the model on: [updates] own_rows", "", none)
    try:
        found = known_held_out(Path(config.state_dir), config.updates.largest_fall)
    except StorageError as error:
        return problem("held-out", error, none)
    if found is None:
        return Finding("held-out", "absent", "the model was not measured yet", "", none)
    said = f"accuracy {found.accuracy:.3f} on {found.rows} own rows; best {found.best:.3f}"
    if not found.has_fallen:
        return Finding("held-out", "ok", said, "", msgspec.structs.asdict(found))
    advice = "look at new corrections and at the last rounds; covey-edge version rollback undoes a rollout"
    return Finding("held-out", "warning", said, advice, msgspec.structs.asdict(found))
