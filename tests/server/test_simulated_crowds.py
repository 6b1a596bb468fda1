"""``covey simulate`` with fleets past one machine's memory: nights, 20,000 and 100,000 devices, the same seed."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from edge_runtime.errors import ConfigError
from server.cli import main
from server.simulation.availability import DAY_S, Nights
from server.simulation.boards import modelled_profiles
from server.simulation.crowd import Crowd
from server.simulation.run import SimulateOptions, simulate
from server.simulation.traces import TraceEvent

NIGHTS = SimulateOptions(
    devices=400, rounds=8, cohort=20, policy=None, work=300.0, zones_h=6.0, days=2.0, deadline_s=3600.0, min_reports=10
)


def run(**changes: Any) -> dict[str, Any]:
    fields = {name: getattr(NIGHTS, name) for name in NIGHTS.__dataclass_fields__}
    result = simulate(SimulateOptions(**fields | changes))
    assert result is not None
    return {key: value for key, value in result.items() if key not in ("wall_s", "cpu_s", "peak_rss_mb")}


def in_a_process(devices: int) -> dict[str, Any]:
    """Simulate two rounds in a process of its own, so that its peak of memory is its own."""
    flags = {"devices": devices, "rounds": 2, "cohort": 50, "policy": "off", "nights": 6, "min-reports": 20}
    command = [sys.executable, "-m", "server.cli", "simulate", "--format", "json"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nights_come_and_go_by_seed() -> None:
    first = run()
    assert run() == first
    assert run(seed=1)["adapter_sha256"] != first["adapter_sha256"]
    here = first["devices_here"]
    assert here["least"] <= here["mean"] <= here["most"] < 400  # never all at once
    assert first["presence_messages"] < first["messages"]
    assert first["reports"] <= first["offers"]


def test_a_simulation_ends_after_its_days() -> None:
    result = run(rounds=1000, days=0.25)
    assert 0.25 * DAY_S <= result["virtual_s"] < 0.3 * DAY_S
    assert 0 < result["rounds"] < 1000
    assert result["rounds_per_day"] == pytest.approx(result["rounds"] * DAY_S / result["virtual_s"])


def test_a_round_waits_for_enough_devices() -> None:
    """All are off for an hour: the next round begins when they are back."""
    gone = (TraceEvent(1.0, "*", here=False), TraceEvent(3600.0, "*", here=True))
    result = run(zones_h=None, traces=gone, drop_out=0.0, rounds=3)
    assert result["wait_s"]["most"] >= 3500


def test_nights_are_of_about_eight_hours_and_no_device_is_on_twice() -> None:
    nights = Nights(50, 6.0, np.random.Generator(np.random.PCG64(0)))
    changes = list(itertools.takewhile(lambda change: change[0] < 5 * DAY_S, nights.changes()))
    assert [at_s for at_s, _, _ in changes] == sorted(at_s for at_s, _, _ in changes)
    begun: dict[int, float] = {}
    lengths = []
    for at_s, device, is_on in changes:
        assert (device in begun) is not is_on
        if is_on:
            begun[device] = at_s
        else:
            lengths.append((at_s - begun.pop(device)) / 3600)
    assert np.mean(lengths) == pytest.approx(8.0, abs=0.5)
    assert 4.0 - 1e-9 <= min(lengths) <= max(lengths) <= 12.0 + 1e-9
    assert 200 < len(lengths) < 300  # one night in ten is missed


def test_devices_are_made_when_they_are_given_work() -> None:
    crowd = Crowd(modelled_profiles(), 1_000_000, 0.3, 1.0, np.random.Generator(np.random.PCG64(0)))
    assert crowd.name(7) == "class-middle-000007"
    assert crowd.index_of("class-middle-000007") == 7
    for wrong in ("class-fast-000007", "class-middle-7", "class-middle-", "class-middle-9999999"):
        with pytest.raises(KeyError):
            crowd.index_of(wrong)
    assert crowd.known(7) is None
    assert crowd.device(7) is crowd.known(7)
    assert crowd.matching("class-middle-000007") == [7]
    assert crowd.matching("class-middle-00000?") == [1, 4, 7]
    assert crowd.matching("nobody") == []


@pytest.mark.parametrize("flags", [["--nights", "25"], ["--days", "0"], ["--work", "nan"], ["--min-reports", "0"]])
def test_bad_options_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *flags]) == ConfigError.exit_code
    assert flags[0] in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_twenty_thousand_devices_take_little_memory_each() -> None:
    few, many = in_a_process(1_000), in_a_process(20_000)
    assert many["devices_here"]["most"] > 10 * few["devices_here"]["most"]
    a_device_kb = (many["peak_rss_mb"] - few["peak_rss_mb"]) * 1024 / 19_000
    assert a_device_kb < 8  # most of it is the real server's, for each device that it knows


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_devices_give_the_same_again() -> None:
    first, again = in_a_process(100_000), in_a_process(100_000)
    assert first["adapter_sha256"] == again["adapter_sha256"]
    assert first["messages"] == again["messages"]
    assert first["devices_here"] == again["devices_here"]
    assert first["peak_rss_mb"] < 1000
