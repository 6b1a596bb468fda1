"""The power that a board draws, in watts: INA3221 (Jetson), PMIC (Raspberry Pi 5), RAPL (x86)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.host.sysfs import Sysfs

_JETSON_INPUTS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN")
_RAPL_S = 0.2
STARTS_A_PROCESS = frozenset({"pmic"})
"""Sensors whose every reading starts a process: who samples often asks them seldom."""


class PowerMeter:
    """Reads the power sensor that a board has.

    Args:
        files: the machine's files.
        run: runs a command, as board.run_command.
        clock: monotonic seconds.
        sleep: waits between two readings of an energy counter, in seconds.
    """

    def __init__(
        self,
        files: Sysfs,
        run: Callable[[list[str]], str | None],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._files, self._run, self._clock, self._sleep = files, run, clock, sleep
        self._sensor: str | None = None

    def read(self) -> tuple[float | None, str | None]:
        """Return watts and the sensor's name: of the whole board where a sensor measures it, else of the processor.

        Once a sensor has answered, no other one is looked for.
        """
        for read, name in ((self._ina3221, "ina3221"), (self._pmic, "pmic"), (self._rapl, "rapl")):
            power = read() if self._sensor in {None, name} else None
            if power is not None:
                self._sensor = name
                return power, name
        return None, None

    def _ina3221(self) -> float | None:
        """Return the power of a Jetson's input rail, or the sum over all rails where that one has no sensor."""
        rails = {}
        for folder in self._files.hwmon("ina3221"):
            for number in (1, 2, 3):
                label = self._files.read(folder / f"in{number}_label") or f"{folder.name}.{number}"
                milli_v = self._files.number(folder / f"in{number}_input")
                milli_a = self._files.number(folder / f"curr{number}_input")
                if milli_v is not None and milli_a is not None and "NC" not in label:
                    rails[label] = milli_v * milli_a / 1e6
        whole = [rails[label] for label in _JETSON_INPUTS if label in rails]
        return whole[0] if whole else sum(rails.values()) if rails else None

    def _pmic(self) -> float | None:
        """Return the sum over a Pi 5's rails; USB ports and the regulators' own losses are not in it."""
        if "raspberry pi 5" not in (self._files.text("proc/device-tree/model") or "").lower():
            return None
        printed = self._run(["vcgencmd", "pmic_read_adc"]) or ""
        found = re.findall(r"(\w+?)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]", printed)
        amperes = {rail: float(value) for rail, kind, value in found if kind == "A"}
        volts = {rail: float(value) for rail, kind, value in found if kind == "V"}
        both = amperes.keys() & volts.keys()
        return sum(amperes[rail] * volts[rail] for rail in both) if both else None

    def _rapl(self) -> float | None:
        before = self._energy()
        if not before:
            return None
        started = self._clock()
        self._sleep(_RAPL_S)
        after, seconds = self._energy(), self._clock() - started
        used = [after[zone] - before[zone] for zone in before.keys() & after.keys()]
        return None if seconds <= 0 or min(used, default=-1.0) < 0 else sum(used) / seconds  # < 0: it wrapped

    def _energy(self) -> dict[str, float]:
        """Return the joules of each package; only root may read them on most systems."""
        packages = (
            (f.name, self._files.number(f / "energy_uj"))
            for f in self._files.glob("sys/class/powercap/intel-rapl:[0-9]")
        )
        return {name: value / 1e6 for name, value in packages if value is not None}
