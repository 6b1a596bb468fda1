"""What a board is and what its sensors read, from /proc and /sys. Unknown is None.

Sources of the figures (all public):

- Raspberry Pi: ``hwmon`` named ``rpi_volt`` (under-voltage alarm), the firmware's ``get_throttled`` word in sysfs where
  the kernel shows it, else ``vcgencmd get_throttled``; Pi 5: ``vcgencmd pmic_read_adc`` (volts, amperes of each rail).
  Each ``vcgencmd`` is a process: nothing starts it but the call that returns its figure.
- Jetson: INA3221 under ``hwmon`` (``in*_label``, ``in*_input`` mV, ``curr*_input`` mA), what tegrastats shows.
- x86: RAPL under ``powercap`` (energy in µJ, so power takes two readings).
- all: ``thermal_zone*``, ``cpufreq``, ``power_supply``, ``/proc/meminfo``, ``/proc/loadavg``.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.device.memory import free_bytes
from edge_runtime.device.power import PowerMeter
from edge_runtime.host.sysfs import Sysfs, read_field, read_hex, read_kilobytes
from edge_runtime.protocol.profile import BoardFacts, Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[[list[str]], str | None]

THROTTLED_NOW = 0b1110
"""Bits of the Pi firmware's word: clock capped (1), throttled (2), soft temperature limit (3); 0 is under-voltage."""
_UNDER_VOLTAGE = 0b1
_SINCE_BOOT = 16
_COMMAND_S = 5.0
_PI_SLOWS_AT_C = 85.0

_ALWAYS_100_C = "PMIC-Die"
"""This zone of a Jetson reads 100 °C whatever its temperature is (NVIDIA's driver has no other value)."""
_CHARGED = {"Charging": True, "Full": True, "Not charging": True, "Discharging": False}

_BOARDS = (
    ("raspberry pi 4", "raspberry-pi-4"),
    ("raspberry pi 5", "raspberry-pi-5"),
    ("jetson agx orin", "jetson-agx-orin"),
    ("orin nano", "jetson-orin-nano"),
    ("linux,dummy-virt", "qemu-arm64"),
)


def run_command(command: list[str]) -> str | None:
    """Return what a command prints; None where it is not installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


class Board:
    """Reads the sensors of one machine.

    Args:
        files: reads files below ``/``; tests pass another folder.
        run: runs a command, as run_command.
        clock: monotonic seconds.
        sleep: waits between two readings of an energy counter, in seconds.
    """

    def __init__(
        self,
        files: Sysfs | None = None,
        run: Run = run_command,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._files, self._run = files or Sysfs(), run
        self._meter = PowerMeter(self._files, run, clock, sleep)

    # -- what it is ---------------------------------------------------------------------------------------------

    def facts(self, board: str | None = None) -> BoardFacts:
        """Return what the board is; ``board`` names its profile folder, for boards that are not recognised."""
        model = self._model or self._files.text("sys/class/dmi/id/product_name")
        machine = os.uname().machine if self._files.root == Path("/") else self._files.text("proc/sys/kernel/arch")
        return BoardFacts(
            board=board or self._known_board(model) or _slug(model, machine),
            model=model,
            machine=machine,
            cores=self._cores(),
            cpu=self._cpu(),
            memory_bytes=read_kilobytes(self._files.text("proc/meminfo"), "MemTotal"),
            max_clock_hz=_scaled(max(self._cpufreq("cpuinfo_max_freq"), default=None), 1e3),
            os=self._os(),
            kernel=self._files.text("proc/sys/kernel/osrelease"),
        )

    def _known_board(self, model: str | None) -> str | None:
        lowered = (model or "").lower()
        return next((board for part, board in _BOARDS if all(word in lowered for word in part.split())), None)

    def _cores(self) -> int | None:
        """Count the online processors, from a list such as ``0-3,6``."""
        text = self._files.text("sys/devices/system/cpu/online")
        if text is None or not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text):
            return None
        ranges = [part.partition("-") for part in text.split(",")]
        return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)

    def _cpu(self) -> str | None:
        """Return the processor's name, else the chip's: ``Hardware`` says BCM2835 on every Raspberry Pi."""
        cpuinfo, compatible = self._files.text("proc/cpuinfo"), self._files.text("proc/device-tree/compatible")
        chip = None if compatible is None else compatible.split("\0")[-1]
        return read_field(cpuinfo, "model name") or chip or read_field(cpuinfo, "Hardware")

    def _os(self) -> str | None:
        text = self._files.text("etc/os-release")
        found = re.search(r'^PRETTY_NAME="?([^"\n]*)', text or "", re.MULTILINE)
        return found.group(1) if found else None

    # -- what its sensors read ----------------------------------------------------------------------------------

    def read(self, disk: Path | None = None, *, power: bool = True) -> Reading:
        """Return what the sensors read now; ``disk`` is the folder whose free disk space counts.

        With ``power`` it may take a fifth of a second.
        """
        flags = self.throttle_flags()
        power_w, sensor = self._meter.read() if power else (None, None)
        return Reading(
            temperature_c=self.temperature_c(),
            throttled=self._throttled(flags),
            throttled_since_boot=None if flags is None else bool((flags >> _SINCE_BOOT) & THROTTLED_NOW),
            under_voltage=self._under_voltage(flags),
            clock_hz=_scaled(max(self._cpufreq("scaling_cur_freq"), default=None), 1e3),
            governor=next(self._files.texts("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor"), None),
            power_w=power_w,
            power_sensor=sensor,
            load=self._load(),
            memory_free_bytes=self.memory_free_bytes(),
            disk_free_bytes=disk_free_bytes(disk),
            on_mains=self.on_mains(),
            battery=self.battery(),
        )

    def power(self) -> tuple[float | None, str | None]:
        """Return the power that the board draws, in watts, and the sensor's name; see PowerMeter.read."""
        return self._meter.read()

    def temperature_c(self) -> float | None:
        """Return the temperature of the hottest zone, in °C.

        Zones that are switched off cannot be read, or read an impossible value.
        """
        zones = []
        for folder in self._files.glob("sys/class/thermal/thermal_zone*"):
            value = self._files.number(folder / "temp")
            if value is None or not -60e3 < value < 200e3:
                continue
            if value != 100e3 or self._files.read(folder / "type") != _ALWAYS_100_C:
                zones.append(value / 1e3)
        return max(zones, default=None)

    def slows_at_c(self) -> float | None:
        """Return the temperature at which the firmware slows the board down, in °C; None: not known.

        Only a Raspberry Pi's is known; other boards get much hotter in normal work.
        """
        return _PI_SLOWS_AT_C if self._is_pi() else None

    def memory_free_bytes(self) -> int | None:
        """Return the memory that this process can still get; see memory.free_bytes."""
        return free_bytes(self._files)

    @functools.cached_property
    def _model(self) -> str | None:
        return self._files.text("proc/device-tree/model")

    def _is_pi(self) -> bool:
        return "raspberry pi" in (self._model or "").lower()

    def throttled(self) -> bool | None:
        """Return whether the clock is held down now; None: not known."""
        return self._throttled(self.throttle_flags())

    def throttle_flags(self) -> int | None:
        """Return the Pi firmware's throttling word, from sysfs where the kernel shows it, else from ``vcgencmd``.

        The kernel shows the word that the ``rpi_volt`` driver has asked for last; without that driver a 0 says nothing.
        """
        if not self._is_pi():
            return None
        for text in self._files.texts("sys/devices/platform/soc*/soc*:firmware/get_throttled"):
            word = read_hex(text)
            if word or (word == 0 and next(self._files.hwmon("rpi_volt"), None) is not None):
                return word
        printed = self._run(["vcgencmd", "get_throttled"])
        return None if printed is None else read_hex(printed.strip().removeprefix("throttled="))

    def _throttled(self, flags: int | None) -> bool | None:
        """Whether the clock is held down: from the Pi's word, else from cooling devices of the processor."""
        if flags is not None:
            return bool(flags & THROTTLED_NOW)
        states = []
        for folder in self._files.glob("sys/class/thermal/cooling_device*"):
            kind = self._files.read(folder / "type") or ""
            state = self._files.number(folder / "cur_state")
            if state is not None and re.match(r"cpufreq|cpu-|processor|thermal-cpufreq", kind, re.IGNORECASE):
                states.append(state > 0)
        return any(states) if states else None

    def _under_voltage(self, flags: int | None) -> bool | None:
        if flags is not None:
            return bool(flags & _UNDER_VOLTAGE)
        for folder in self._files.hwmon("rpi_volt"):
            alarm = self._files.number(folder / "in0_lcrit_alarm")
            if alarm is not None:
                return alarm > 0
        return None

    def _load(self) -> float | None:
        text = self._files.text("proc/loadavg")
        try:
            return float((text or "").split()[0]) / (self._cores() or 1)
        except (IndexError, ValueError):
            return None

    def on_mains(self) -> bool | None:
        """Return whether a supply is connected; None: not known.

        A supply that is offline says nothing on a board without a battery: an unused USB-C port of a Jetson or of a
        graphics card is one. Where no supply can be read, the battery's own state tells.
        """
        online = [
            value
            for folder in self._supplies(("Mains", "USB", "USB_C", "USB_PD", "USB_DCP", "USB_CDP", "Wireless"))
            if (value := self._files.number(folder / "online")) is not None
        ]
        if any(online):
            return True
        batteries = list(self._supplies(("Battery",)))
        if online:
            return False if batteries else None
        states = [_CHARGED.get(self._files.read(folder / "status") or "") for folder in batteries]
        known = [state for state in states if state is not None]
        return all(known) if known else None

    def battery(self) -> float | None:
        """Return the charge of the emptiest battery of the board itself, 0 … 1; None: not known."""
        charges = [
            value / 100
            for folder in self._supplies(("Battery",))
            if (value := self._files.number(folder / "capacity")) is not None and 0 <= value <= 100
        ]
        return min(charges, default=None)

    # -- files --------------------------------------------------------------------------------------------------

    def _supplies(self, kinds: tuple[str, ...]) -> Iterator[Path]:
        """Return the supplies of some kinds, without those of mice and other devices that are attached."""
        for folder in self._files.glob("sys/class/power_supply/*"):
            if self._files.read(folder / "type") in kinds and self._files.read(folder / "scope") != "Device":
                yield folder

    def _cpufreq(self, name: str) -> list[float]:
        return self._files.numbers(f"sys/devices/system/cpu/cpu[0-9]*/cpufreq/{name}")


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def disk_free_bytes(path: Path | None) -> int | None:
    """Return the free space of the disk that holds a folder; None: not known."""
    if path is None:
        return None
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _slug(model: str | None, machine: str | None) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", (model or machine or "").lower()).strip("-")[:63].strip("-")
    return slug or "unknown-board"
