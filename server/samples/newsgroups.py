"""20 newsgroups: messages and the group that each was posted to; a second task, on which no setting was chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from server.samples.reviews import Division, Review, divide_by_label

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
_HEADER_LINES = 3
_SEED = 20260102


def read_newsgroups(prefix: Path, part: str) -> list[Review]:
    """Return the messages of a part, each with its group as the label.

    Args:
        prefix: the files' path without their last part, as fetch_package returns it.
        part: ``train`` or ``test``: the data set's own division, by date.
    """
    lines = prefix.with_name(f"{prefix.name}{part}.tab").read_text(encoding="utf-8").splitlines()[_HEADER_LINES:]
    pairs = (line.split("\t", 1) for line in lines if line)
    return [Review(text, group) for group, text in pairs if text.strip()]


def divide_newsgroups(
    train: list[Review], test: list[Review], n_devices: int, rows_per_device: int, held_out: int, alpha: float
) -> Division:
    """Divide messages among devices with a skew of labels, and draw held-out rows from the later messages.

    Args:
        train: messages for devices.
        test: later messages.
        n_devices: number of devices.
        rows_per_device: messages of each.
        held_out: number of held-out rows.
        alpha: skew of labels, see divide_by_label.
    """
    rng = np.random.Generator(np.random.PCG64(_SEED))
    chosen = [train[index] for index in rng.permutation(len(train))[: n_devices * rows_per_device]]
    rows = [chosen[index * rows_per_device : (index + 1) * rows_per_device] for index in range(n_devices)]
    later = [test[index] for index in rng.permutation(len(test))[:held_out]]
    return divide_by_label(Division(rows, later), alpha, _SEED)
