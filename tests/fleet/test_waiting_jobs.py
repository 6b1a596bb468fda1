"""A job that waits for devices of a large fleet looks at all of them now and then, and not with every message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from bench import FORWARD_ONLY, JOB, Bench, bench_of, birth_of, coordinator

from server.rounds.job_run import JobRun

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from server.fleet.devices import Device


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class Fleet:
    """A clock that goes on while a fleet is looked at, and how often it was."""

    def __init__(self, look_s: float) -> None:
        self.now_s, self.look_s, self.looks = 100.0, look_s, 0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("look_s", "looks"), [(0.5, 5), (0.01, 40)])
def test_a_long_look_is_followed_by_a_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, look_s: float, looks: int
) -> None:
    fleet, look = Fleet(look_s), JobRun.devices

    def devices(run: JobRun) -> dict[str, Device]:
        fleet.looks += 1
        fleet.now_s += fleet.look_s
        return look(run)

    monkeypatch.setattr(JobRun, "devices", devices)
    with coordinator(bench, msgspec.structs.replace(JOB, min_devices=2), fleet) as (made, _ledger):
        run, roster = made.job_run, made.coordinator.roster
        roster.begin_epoch("epoch", 0.0)
        run.begin(resumed=False)
        while run.waiting_for is None:
            run.step()
        first = fleet.looks
        for _ in range(40):
            run.step()
            fleet.now_s += 0.25
        assert fleet.looks - first == pytest.approx(looks, abs=1)
        for name in ("a", "b"):
            roster.device(name).birth = birth_of(name, FORWARD_ONLY, rows=5, epoch="epoch")
            roster.device(name).state = "online"
        fleet.now_s += 5 * look_s
        run.step()
        assert run.waiting_for is None  # a round is open
        made.job_run.close()
