"""Sessions of a swarm train nothing: only a job that is for them alone has them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from server.job.selector import SWARM, parse_selector
from server.queue.schedule import Waiting, owner_of, schedule
from server.swarm.counts import Counts, percentile
from server.swarm.members import names_of

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)


@given(st.lists(NAMES.map("tag:{}".format) | NAMES, min_size=1), st.sets(NAMES), NAMES)
def test_no_other_job_has_a_session_whatever_else_it_is_called(items: list[str], tags: set[str], name: str) -> None:
    named = [item for item in items if item != f"tag:{SWARM}"] or ["all"]
    for text in ("all", ", ".join([*named, name])):
        assert not parse_selector(text).fits(name, {*tags, SWARM})
    assert parse_selector(f"tag:{SWARM}").fits(name, {*tags, SWARM})
    assert not parse_selector(f"tag:{SWARM}").fits(name, tags - {SWARM})


@pytest.mark.parametrize("devices", [f"tag:{SWARM}, tag:kitchen", f"pi-3, tag:{SWARM}", f"all, tag:{SWARM}"])
def test_a_job_for_the_swarm_and_others_is_refused(devices: str) -> None:
    with pytest.raises(ConfigError, match="drawn numbers, which spoil a model"):
        parse_selector(devices)
    assert parse_selector(f"tag:{SWARM}, tag:{SWARM}").is_for_swarm


def test_a_load_test_and_a_real_job_run_side_by_side() -> None:
    real, load = parse_selector("all"), parse_selector(f"tag:{SWARM}")
    devices = {"pi-1": set[str](), "swarm-00001": {SWARM}}
    planned = schedule([Waiting("load", load), Waiting("second", load)], {"real": real}, {}, devices)
    assert planned.start == ["load"]
    assert planned.reasons == {"second": "waits for devices of load"}
    running = {"real": real, "load": load}
    assert {name: owner_of(name, tags, running) for name, tags in devices.items()} == {
        "pi-1": "real",
        "swarm-00001": "load",
    }


def test_counts_add_up_over_processes_and_ticks() -> None:
    mine, total = Counts(), Counts()
    mine.connects, mine.round_trips_s = 3, [0.5]
    mine.reports["taken"] += 2
    total.add(mine.take())
    assert (mine.connects, mine.acknowledged, mine.round_trips_s) == (0, 0, [])
    mine.connects, mine.disconnects = 1, 2
    mine.reports["late"] += 1
    total.add(mine.take())
    assert (total.connected, total.acknowledged, dict(total.reports)) == (2, 3, {"taken": 2, "late": 1})


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_has_its_share_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(sorted(values), share)
    assert found is not None
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert percentile([], share) is None


def test_names_are_those_of_a_swarm() -> None:
    assert names_of(2, 99) == ["swarm-00099", "swarm-00100"]
