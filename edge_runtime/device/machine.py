"""What the agent asks of the machine it runs on: may it train now, how much memory is free, what time is it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.device import memory
from edge_runtime.device.gate import Gate, board_conditions
from edge_runtime.host.sysfs import read_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.device.eligibility import EligibilityRules


@dataclass(frozen=True)
class Machine:
    """The machine as the agent sees it.

    Attributes:
        gate: whether the owner's rules let the device train now.
        free_bytes: returns the memory that this process can still get, in bytes; None: not known.
        clock: returns monotonic seconds.
        wall_clock: returns seconds since 1970.
        boot_id: of the machine's start, from its kernel; None: not known.
    """

    gate: Gate
    free_bytes: Callable[[], int | None] = memory.free_bytes
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    boot_id: str | None = None


def this_machine(rules: EligibilityRules, state_dir: Path) -> Machine:
    """Return the machine that this process runs on.

    Args:
        rules: the owner's rules.
        state_dir: the device's state directory; its disk is the one whose free space counts.

    Raises:
        ConfigError: this machine can never follow the rules: see eligibility.check_rules.
    """
    boot_id = read_text(Path("/proc/sys/kernel/random/boot_id"))
    return Machine(Gate(rules, board_conditions(rules, state_dir)), boot_id=boot_id)
