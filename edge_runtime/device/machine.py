"""What the agent asks of the machine it runs on: may it train now, how much memory is free, what time is it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.device import memory
from edge_runtime.device.gate import Gate, board_conditions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.device.eligibility import EligibilityRules


@dataclass(frozen=True)
class Machine:
    """The machine as the agent sees it.

    Attributes:
        gate: whether the owner's rules let the device train now.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
        clock: returns monotonic seconds.
        wall_clock: returns seconds since 1970.
    """

    gate: Gate
    free_bytes: Callable[[], int | None] = memory.free_bytes
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


def this_machine(rules: EligibilityRules, state_dir: Path) -> Machine:
    """Return the machine that this process runs on.

    Args:
        rules: the owner's rules.
        state_dir: the device's state directory; its disk is the one whose free space counts.

    Raises:
        ConfigError: this machine can never follow the rules: see eligibility.check_rules.
    """
    return Machine(Gate(rules, board_conditions(state_dir)))
