"""The order of rows in local steps: shuffled for each epoch, from seeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable


def batch_indices(n_rows: int, batch_size: int, batch_number: int, seed_of_epoch: Callable[[int], int]) -> list[int]:
    """Return the rows of one batch of an endless pass over the data.

    Every epoch visits each row once, in its own order; a batch may span two epochs. The batch depends on its number
    alone, so a device that has missed rounds needs no state to go on.

    Args:
        n_rows: rows on the device, at least 1.
        batch_size: rows per batch; a device with fewer rows uses all of them.
        batch_number: index of the batch, from 0, over the whole job.
        seed_of_epoch: returns the seed of an epoch's order.
    """
    size = min(batch_size, n_rows)
    positions = range(batch_number * size, (batch_number + 1) * size)
    orders = {
        epoch: np.random.Generator(np.random.PCG64(seed_of_epoch(epoch))).permutation(n_rows)
        for epoch in {position // n_rows for position in positions}
    }
    return [int(orders[position // n_rows][position % n_rows]) for position in positions]
