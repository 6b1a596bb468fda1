"""``covey scale``: the arithmetic of the cost model, and what it says where something is not known or not possible."""

from __future__ import annotations

import json

import msgspec
import pytest

from edge_runtime.errors import ConfigError
from server.advice.scale import BUSY, COSTS_FILE, Cost, Costs, Fleet, Needs, needs
from server.cli import main

COSTS = Costs(
    commit="abc",
    machine="a machine",
    r2=0.99,
    fixed_s=Cost(0.1, 0.0),
    report_s=Cost(1e-3, 1e-4),
    online_s=Cost(1e-6, 0.0),
    replayed_s=Cost(1e-11, 0.0),
    announcement_s=Cost(2e-4, 0.0),
    up_messages=2.0,
    up_bytes=500.0,
    down_messages=2.0,
    down_bytes=800.0,
    log_bytes=100.0,
    directions=10.0,
    ledger_report_bytes=Cost(300.0, 0.0),
    ledger_device_bytes=Cost(500.0, 0.0),
    ledger_report_rows=1.0,
    ledger_device_rows=1.0,
    memory_device_bytes=2000.0,
    most_online=50_000,
    most_reports=1000,
)
FLEET = Fleet(
    devices=100_000,
    online=0.5,
    joins_per_day=1.0,
    cohort=1000,
    over_selection=1.2,
    round_every_s=3600.0,
    adapter_bytes=4_000_000.0,
)


def of(**changes: object) -> Needs:
    return needs(COSTS, msgspec.structs.replace(FLEET, **changes))


def test_a_round_is_the_sum_of_its_parts() -> None:
    found = of()
    # 0.1 fixed; 1,200 offers at 1 ms; 50,000 online at 1 us; 1,000 reports x 10 directions x a million parameters.
    assert found.round_s == pytest.approx(0.1 + 1.2 + 0.05 + 0.1)
    assert found.round_s_error == pytest.approx(2 * 1200 * 1e-4)
    assert found.cores == pytest.approx(found.round_s / 3600 + 100_000 * 2e-4 / 86_400)
    assert found.messages_per_s == pytest.approx(1200 * 4 / 3600 + 3 * 100_000 / 86_400)
    assert found.up_bytes_per_s == pytest.approx(1200 * 500 / 3600)
    assert found.presence_s == pytest.approx(10.0)
    assert found.final_bytes == 50_000 * 4_000_000
    assert found.ledger_rows_per_day == pytest.approx(24 * 1200)
    assert found.ledger_device_bytes == 5e7


def test_a_device_fetches_the_logs_that_it_missed_or_the_adapter() -> None:
    far, near = of(), of(online=0.024)
    assert far.missed_rounds == pytest.approx(50_000 / 1200)
    assert far.fetched_bytes == 4_000_000  # 41.7 rounds of 100 kB are more
    assert near.missed_rounds == pytest.approx(2.0)
    assert near.fetched_bytes == pytest.approx(2 * 1000 * 100)
    assert of(sends_deltas=True, online=0.024).fetched_bytes == 4_000_000
    assert of(sends_deltas=True).up_bytes_per_s > 1000 * 4_000_000 / 3600


@pytest.mark.parametrize(("limit", "name"), [("most_devices", "devices"), ("most_cohort", "cohort")])
def test_where_one_server_ends_it_is_just_as_busy_as_it_may_be(limit: str, name: str) -> None:
    """Rounds so close that the processor ends first."""
    often = {"round_every_s": 0.8, "cohort": 100}
    found = getattr(of(**often), limit)
    assert found is not None
    assert of(**often).devices_end_with == "rounds"
    at_the_limit = of(**often | {name: found})
    assert at_the_limit.cores == pytest.approx(BUSY, rel=0.01)
    assert of(**often | {name: 2 * found}).is_within_one_server is False


def test_a_large_fleet_ends_with_the_servers_restart() -> None:
    found = of(round_every_s=86_400.0)
    assert found.devices_end_with == "restart"
    assert found.most_devices == pytest.approx(60 / 2e-4 / 0.5, rel=1e-6)
    assert of(devices=found.most_devices).presence_s == pytest.approx(60.0)


def test_what_was_not_measured_is_called_extrapolated() -> None:
    assert of().is_extrapolated is False
    assert of(devices=100_002).is_extrapolated is True
    assert of(cohort=1001).is_extrapolated is True
    assert of().memory_bytes == 2e8


def test_what_is_not_known_or_not_possible_is_none() -> None:
    assert of().brokers is None
    assert of(broker_sessions=20_000).brokers == 3
    assert of(round_every_s=1.0).most_devices is None  # the rounds alone are too much
    assert of(devices=10**9, joins_per_day=100.0).most_cohort is None


def test_the_command_says_where_its_figures_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    costs = msgspec.json.decode(COSTS_FILE.read_bytes(), type=Costs)
    assert main(["scale", "--devices", "1000000", "--online", "0.3", "--cohort", "2000"]) == 0
    shown = capsys.readouterr().out
    assert costs.machine in shown
    assert str(costs.commit) in shown
    assert "Not in these figures" in shown
    assert "not known" in shown  # brokers
    assert main(["scale", "--devices", "100000", "--round-every", "10m", "--format", "json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["measured_on"] == costs.machine
    assert value["brokers"] is None
    assert value["missed_rounds"] == pytest.approx(100_000 / 1200)


@pytest.mark.parametrize(
    "flags",
    [
        ["--devices", "0"],
        ["--round-every", "often"],
        ["--round-every", "0h"],
        ["--online", "1.5"],
        ["--adapter-mb", "nan"],
        ["--over-selection", "0.5"],
        ["--broker-sessions", "0"],
    ],
)
def test_bad_options_are_named(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = flags if flags[0] == "--devices" else ["--devices", "10", *flags]
    assert main(["scale", *arguments]) == ConfigError.exit_code
    assert flags[0] in capsys.readouterr().err
