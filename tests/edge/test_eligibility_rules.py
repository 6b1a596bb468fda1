"""Eligibility: the owner's rules, what is not known, the margin that keeps a device from going to and fro."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.config import read_edge_config
from edge_runtime.device.board import Board
from edge_runtime.device.eligibility import (
    STRICTER,
    Conditions,
    EligibilityRules,
    broken_rules,
    check_rules,
    needed_conditions,
)
from edge_runtime.device.gate import EVERY_S, Gate, OtherLoad, board_conditions
from edge_runtime.errors import ConfigError
from edge_runtime.host.sysfs import Sysfs

NOON = dt.time(12, 0)
GOOD = Conditions(
    temperature_c=50.0,
    throttled=False,
    other_load=0.1,
    on_mains=True,
    battery=0.9,
    memory_free_bytes=10**9,
    disk_free_bytes=10**10,
)
ALL = EligibilityRules(
    most_temperature_c=80.0,
    not_throttled=True,
    most_other_load=0.5,
    on_mains=True,
    least_battery=0.5,
    least_memory_mb=200,
    least_disk_mb=1000,
    hours=["08:00-18:00"],
    unknown="refuse",
)
LIMITS = {
    "most_temperature_c": ("temperature_c", 80.0, 1.0),
    "most_other_load": ("other_load", 0.5, 1.0),
    "least_battery": ("battery", 0.5, 1.0),
    "least_memory_mb": ("memory_free_bytes", 200.0, 1e6),
    "least_disk_mb": ("disk_free_bytes", 1000.0, 1e6),
}


def test_a_good_board_works_and_each_rule_alone_can_stop_it() -> None:
    assert broken_rules(ALL, GOOD, NOON) == {}
    bad = {
        "most_temperature_c": {"temperature_c": 81.0},
        "not_throttled": {"throttled": True},
        "most_other_load": {"other_load": 0.7},
        "on_mains": {"on_mains": False},
        "least_battery": {"battery": 0.4},
        "least_memory_mb": {"memory_free_bytes": 10**8},
        "least_disk_mb": {"disk_free_bytes": 10**8},
    }
    for rule, change in bad.items():
        assert set(broken_rules(ALL, msgspec.structs.replace(GOOD, **change), NOON)) == {rule}
    assert broken_rules(ALL, GOOD, dt.time(18, 0)) == {"hours": "it is 18:00, outside 08:00-18:00"}
    assert broken_rules(ALL, msgspec.structs.replace(GOOD, temperature_c=81.5), NOON) == {
        "most_temperature_c": "81.5 °C, above 80"
    }


def test_what_is_not_known_is_passed_over_or_refused() -> None:
    blind = Conditions()
    assert broken_rules(msgspec.structs.replace(ALL, unknown="allow"), blind, NOON) == {}
    assert len(broken_rules(ALL, blind, NOON)) == 7
    with pytest.raises(ConfigError, match="not_throttled, on_mains") as caught:
        check_rules(ALL, blind)
    assert "most_other_load" not in caught.value.what  # it takes two looks
    check_rules(ALL, GOOD)
    check_rules(msgspec.structs.replace(ALL, unknown="allow"), blind)


def test_without_rules_only_heat_stops_a_board() -> None:
    rules = EligibilityRules()
    assert broken_rules(rules, Conditions(), NOON) == {}
    assert broken_rules(msgspec.structs.replace(rules, unknown="refuse"), Conditions(), NOON) == {}
    awful = Conditions(throttled=True, other_load=1.0, on_mains=False, battery=0.0, memory_free_bytes=0)
    assert broken_rules(rules, awful, NOON) == {}
    assert broken_rules(rules, Conditions(temperature_c=99.0), NOON) == {}  # normal for some boards
    hot = Conditions(temperature_c=86.0, slows_at_c=85.0)
    assert set(broken_rules(rules, hot, NOON)) == {"most_temperature_c"}
    off = EligibilityRules(most_temperature_c=150.0)
    assert broken_rules(off, Conditions(temperature_c=149.0), NOON) == {}


@given(rule=st.sampled_from(sorted(LIMITS)), share=st.floats(0.0, 2.0), was_broken=st.booleans())
def test_a_limit_holds_and_a_broken_one_holds_a_margin_longer(rule: str, share: float, *, was_broken: bool) -> None:
    field, limit, unit = LIMITS[rule]
    value = limit * share
    now = msgspec.structs.replace(GOOD, **{field: value * unit})
    broken = rule in broken_rules(ALL, now, NOON, {rule} if was_broken else ())
    worse = value > limit if rule.startswith("most") else value < limit
    bound = STRICTER[rule](limit)
    clearly_better = value <= bound if rule.startswith("most") else value >= bound
    assert broken or not worse
    assert not (broken and clearly_better)
    assert broken == worse or was_broken


@given(start=st.integers(0, 1439), stop=st.integers(0, 1439), minute=st.integers(0, 1439), second=st.integers(0, 59))
def test_a_window_is_its_minutes_also_over_midnight(start: int, stop: int, minute: int, second: int) -> None:
    window = f"{start // 60:02}:{start % 60:02}-{stop // 60:02}:{stop % 60:02}"
    inside, at = set(), start
    while True:
        inside.add(at)
        at = (at + 1) % 1440
        if at == stop:
            break
    rules = EligibilityRules(hours=[window])
    now = dt.time(minute // 60, minute % 60, second)
    assert (broken_rules(rules, GOOD, now) == {}) == (minute in inside or start == stop)


@pytest.mark.parametrize(
    "line",
    [
        'hours = ["25:00-06:00"]',
        'hours = ["night"]',
        "most_temperature_c = 0",
        "least_battery = 1.5",
        "colour = 1",
        "most_other_load = 0.0",
        'unknown = "guess"',
    ],
)
def test_rules_that_cannot_be_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f'name = "pi"\nbroker = "mqtt://h"\n[data]\npath = "d.jsonl"\n[eligibility]\n{line}\n')
    with pytest.raises(ConfigError, match=line.split(maxsplit=1)[0]):
        read_edge_config(path)
    path.write_text(
        'name = "pi"\nbroker = "mqtt://h"\n[data]\npath = "d.jsonl"\n[eligibility]\nhours = ["22:00-06:00"]'
    )
    assert read_edge_config(path).eligibility.hours == ["22:00-06:00"]


def test_the_load_of_others_is_what_is_left_of_all(tmp_path: Path) -> None:
    stat, own = tmp_path / "stat", [0.0]

    def counters(user: int, idle: int) -> None:
        stat.write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")

    counters(1000, 1000)
    load = OtherLoad(stat, lambda: own[0], 100.0)
    assert load() is None
    counters(1100, 1100)
    own[0] = 0.6
    assert load() == pytest.approx(0.2)  # 100 of 200 ticks were busy, 60 of them ours
    counters(1101, 1100)
    assert load() == pytest.approx(0.2)  # too few ticks to tell
    counters(1301, 1100)
    own[0] = 9.0
    assert load() == 0.0
    stat.write_text("nonsense")
    assert load() is None
    assert OtherLoad(tmp_path / "nothing")() is None


def gate(
    readings: list[Conditions], clock: Callable[[], float], rules: EligibilityRules | None = None
) -> tuple[Gate, Any]:
    asked = iter(readings)
    return Gate(rules or EligibilityRules(), lambda: next(asked), lambda: NOON, clock), asked


def test_a_gate_looks_now_and_then_and_tells_changes() -> None:
    now = [0.0]
    hot, warm, cool = (Conditions(temperature_c=value, slows_at_c=85.0) for value in (90.0, 83.0, 70.0))
    made, asked = gate([cool, hot, warm, cool, hot], lambda: now[0])
    assert made.closed is None
    assert not made.look()  # not yet
    now[0] += EVERY_S
    assert made.look()
    assert made.closed == "90 °C, above 85"
    now[0] += EVERY_S
    assert not made.look()  # below the limit, above what it takes to begin again
    assert made.closed == "83 °C, above 80"
    now[0] += EVERY_S
    assert made.look()
    assert made.closed is None
    assert made.look(now=True)
    assert next(asked, None) is None


def test_this_machine_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 2000 kB\n")

    def conditions(**rules: Any) -> Conditions:
        board = Board(Sysfs(tmp_path), run=lambda _command: None)
        return board_conditions(EligibilityRules(**rules), tmp_path, board)()

    found = conditions(least_memory_mb=1.0, least_disk_mb=1.0)
    assert found.memory_free_bytes == 2_048_000
    assert found.disk_free_bytes is not None
    assert found.temperature_c is None
    assert found.slows_at_c is None
    assert conditions() == Conditions()
    (tmp_path / "proc/device-tree").mkdir()
    (tmp_path / "proc/device-tree/model").write_text("Raspberry Pi 5 Model B Rev 1.0\0")
    assert conditions().slows_at_c == 85.0


@given(
    st.builds(
        EligibilityRules,
        most_temperature_c=st.sampled_from([None, 60.0, 150.0]),
        not_throttled=st.booleans(),
        most_other_load=st.sampled_from([None, 0.5]),
        on_mains=st.booleans(),
        least_battery=st.sampled_from([None, 0.5]),
        least_memory_mb=st.sampled_from([None, 200.0]),
        least_disk_mb=st.sampled_from([None, 1000.0]),
    ),
    st.sampled_from([None, 85.0]),
    st.sampled_from(["allow", "refuse"]),
)
def test_what_no_rule_needs_changes_no_decision(
    rules: EligibilityRules, slows_at_c: float | None, unknown: Any
) -> None:
    rules = msgspec.structs.replace(rules, unknown=unknown)
    awful = Conditions(
        temperature_c=149.0,
        slows_at_c=slows_at_c,
        throttled=True,
        other_load=1.0,
        on_mains=False,
        battery=0.0,
        memory_free_bytes=0,
        disk_free_bytes=0,
    )
    needed = needed_conditions(rules, slows_at_c)
    blind = {name: None for name in msgspec.structs.asdict(awful) if name not in needed | {"slows_at_c"}}
    for now in (awful, msgspec.structs.replace(GOOD, slows_at_c=slows_at_c)):
        seen = msgspec.structs.replace(now, **blind)
        assert broken_rules(rules, seen, NOON) == broken_rules(rules, now, NOON)
    check_rules(rules, seen)
