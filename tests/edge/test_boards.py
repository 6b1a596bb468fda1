"""Boards as public dumps show them: what is read of each, and that no look reads or starts what no rule needs."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from boards import NAMES, DumpedBoard, lay_out, read_dump

from edge_runtime.device.board import Board
from edge_runtime.device.eligibility import EligibilityRules
from edge_runtime.device.gate import EVERY_S, Gate, board_conditions
from edge_runtime.errors import ConfigError
from edge_runtime.host.sysfs import read_text

if TYPE_CHECKING:
    from collections.abc import Iterator

PMIC_W = 10.79989  # the sum over twelve rails, added up apart from the product
EXPECTED: dict[str, dict[str, Any]] = {
    "raspberry-pi-5": {
        "board": "raspberry-pi-5",
        "cpu": "brcm,bcm2712",
        "cores": 4,
        "max_clock_hz": 3.1e9,
        "temperature_c": 48.0,
        "throttled": False,
        "throttled_since_boot": False,
        "under_voltage": False,
        "power_w": pytest.approx(PMIC_W, abs=0.001),
        "power_sensor": "pmic",
    },
    "raspberry-pi-4": {
        "board": "raspberry-pi-4",
        "cpu": "BCM2835",
        "max_clock_hz": 1.5e9,
        "temperature_c": 62.322,
        "throttled": True,
        "under_voltage": True,
        "power_w": None,
    },
    "raspberry-pi-3b-plus": {
        "board": "raspberry-pi-3-model-b-plus-rev-1-3",
        "throttled": True,
        "throttled_since_boot": True,
        "under_voltage": False,
    },
    "raspberry-pi-3b-plus-stale-word": {"throttled": True, "throttled_since_boot": True},
    "raspberry-pi-zero-2": {
        "board": "raspberry-pi-zero-2-rev-1-0",
        "cpu": "ARMv7 Processor rev 4 (v7l)",
        "cores": 4,
        "temperature_c": 53.7,
        "throttled": None,
    },
    "jetson-orin-nano": {
        "board": "jetson-orin-nano",
        "cpu": "nvidia,tegra23x",
        "cores": 6,
        "temperature_c": 47.3,
        "power_w": pytest.approx(5.05 * 0.96),
        "power_sensor": "ina3221",
        "throttled": None,
        "on_mains": None,
    },
    "jetson-agx-orin": {"board": "jetson-agx-orin", "temperature_c": 47.4, "power_w": None},
    "jetson-nano": {"board": "nvidia-jetson-nano-developer-kit", "cores": 4, "temperature_c": 31.0},
    "android-pixel-8": {
        "board": "unknown-board",
        "cpu": None,
        "cores": 9,
        "max_clock_hz": 2.914e9,
        "clock_hz": 2.13e9,
        "governor": "sched_pixel",
        "temperature_c": None,
        "battery": None,
        "on_mains": None,
    },
    "android-meizu-16th": {"battery": 0.61, "on_mains": False},
    "desktop-with-usb-c": {"battery": None, "on_mains": None},
    "laptop-usb-c-unseen": {"battery": 0.98, "on_mains": True},
}
NOON = dt.time(12, 0)


@pytest.fixture
def dumped(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DumpedBoard]:
    """The board that the test's parameter names."""
    yield from lay_out(request.param, tmp_path / "root")


def board_of(dumped: DumpedBoard) -> Board:
    return Board(dumped.files, run=dumped.run, clock=lambda: 0.0, sleep=lambda _s: None)


def test_every_dump_names_its_sources_and_is_tested() -> None:
    assert set(NAMES) == set(EXPECTED)
    for name in NAMES:
        for source in read_dump(name)["sources"]:
            assert "/" in source["repository"], name
            assert source["gives"], name
            assert "issue" in source or "path" in source, name


@pytest.mark.parametrize(("dumped", "name"), [(name, name) for name in NAMES], indirect=["dumped"], ids=NAMES)
def test_what_is_read_of_a_board(dumped: DumpedBoard, name: str) -> None:
    board = board_of(dumped)
    facts, reading = board.facts(), board.read()
    found = {key: getattr(facts if hasattr(facts, key) else reading, key) for key in EXPECTED[name]}
    assert found == EXPECTED[name]


def test_a_sensor_that_answers_again_is_not_known(tmp_path: Path) -> None:
    """A file object returns None for EAGAIN, and a reader that waits hangs."""
    pipe = tmp_path / "temp"
    os.mkfifo(pipe)
    assert read_text(pipe) is None  # nobody writes: the end of the file
    writer = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    try:
        assert read_text(pipe) is None
    finally:
        os.close(writer)
    assert read_text(tmp_path) is None
    assert read_text(tmp_path / "none") is None


RULES: dict[str, tuple[EligibilityRules, tuple[str, ...]]] = {
    "no rule": (EligibilityRules(), ()),
    "hours": (EligibilityRules(hours=["08:00-18:00"]), ()),
    "no limit of temperature": (EligibilityRules(most_temperature_c=150.0), ()),
    "temperature": (EligibilityRules(most_temperature_c=80.0), ("sys/class/thermal/thermal_zone",)),
    "mains": (EligibilityRules(on_mains=True), ("sys/class/power_supply",)),
    "battery": (EligibilityRules(least_battery=0.5), ("sys/class/power_supply",)),
    "memory": (EligibilityRules(least_memory_mb=1.0), ("proc/meminfo", "proc/self/")),
    "disk": (EligibilityRules(least_disk_mb=1.0), ()),
    "throttled": (
        EligibilityRules(not_throttled=True),
        ("sys/class/thermal/cooling", "sys/devices/platform/soc", "sys/class/hwmon"),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("dumped", "name"), [(name, name) for name in NAMES], indirect=["dumped"], ids=NAMES)
def test_a_look_of_the_gate_reads_and_starts_what_its_rules_need(
    dumped: DumpedBoard, name: str, rule: str, tmp_path: Path
) -> None:
    rules, allowed = RULES[rule]
    if "raspberry" in name and rules.most_temperature_c is None:
        allowed += ("sys/class/thermal/thermal_zone",)  # a Raspberry Pi rests above 85 °C by default
    now = [0.0]
    gate = Gate(rules, board_conditions(rules, tmp_path, board_of(dumped)), lambda: NOON, lambda: now[0])
    dumped.forget()
    for _ in range(6):
        now[0] += EVERY_S
        gate.look()
    foreign = [path for path in dumped.files.reads + dumped.files.globs if not path.startswith(allowed)]
    assert foreign == []
    if rule != "throttled":
        assert dumped.started == []
    if not allowed:
        assert dumped.files.reads == dumped.files.globs == []


@pytest.mark.parametrize(
    ("dumped", "started"),
    [
        ("raspberry-pi-3b-plus", []),  # the kernel shows the word
        ("raspberry-pi-3b-plus-stale-word", ["vcgencmd get_throttled"]),  # … but nobody refreshes it
        ("raspberry-pi-4", ["vcgencmd get_throttled"]),
        ("jetson-orin-nano", []),
        ("android-pixel-8", []),
    ],
    indirect=["dumped"],
)
def test_a_process_is_started_only_where_sysfs_does_not_tell(dumped: DumpedBoard, started: list[str]) -> None:
    board = board_of(dumped)
    board.throttled()
    assert dumped.started == started
    board.temperature_c(), board.battery(), board.on_mains(), board.memory_free_bytes(), board.facts()
    assert dumped.started == started


@pytest.mark.parametrize("dumped", ["raspberry-pi-5"], indirect=True)
def test_a_word_of_zero_is_believed_where_the_kernel_asks_for_it(dumped: DumpedBoard) -> None:
    place = dumped.files.root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    place.parent.mkdir(parents=True)
    place.write_text("0\n")
    assert board_of(dumped).throttled() is False
    assert dumped.started == []


@pytest.mark.parametrize("dumped", ["raspberry-pi-5"], indirect=True)
def test_samples_of_power_ask_the_sensor_that_answered(dumped: DumpedBoard) -> None:
    board = board_of(dumped)
    assert board.power()[1] == "pmic"
    dumped.forget()
    assert board.power()[1] == "pmic"
    assert dumped.files.globs == []
    assert dumped.started == ["vcgencmd pmic_read_adc"]


@pytest.mark.parametrize("dumped", ["desktop-with-usb-c", "jetson-orin-nano"], indirect=True)
def test_an_unused_port_is_no_sign_of_a_battery(dumped: DumpedBoard, tmp_path: Path) -> None:
    """The rule is refused at start where it is to hold, and else passed over: such a board never rests for it."""
    rules = EligibilityRules(on_mains=True)
    assert Gate(rules, board_conditions(rules, tmp_path, board_of(dumped)), lambda: NOON).closed is None
    strict = EligibilityRules(on_mains=True, unknown="refuse")
    with pytest.raises(ConfigError, match="on_mains"):
        Gate(strict, board_conditions(strict, tmp_path, board_of(dumped)), lambda: NOON)


@pytest.mark.parametrize(("dumped", "hot"), [("jetson-nano", False), ("raspberry-pi-5", True)], indirect=["dumped"])
def test_a_zone_that_always_reads_100_closes_no_gate(dumped: DumpedBoard, tmp_path: Path, *, hot: bool) -> None:
    rules = EligibilityRules(most_temperature_c=90.0)
    if hot:  # a real 100 °C does
        (dumped.files.root / "sys/class/thermal/thermal_zone0/temp").write_text("100000\n")
    gate = Gate(rules, board_conditions(rules, tmp_path, board_of(dumped)), lambda: NOON)
    assert (gate.closed is not None) == hot
