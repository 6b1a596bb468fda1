"""Rollouts through a real fleet: processes of server, broker, devices and commands; the server is killed on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from fleets import Fleet, wait_for

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.store.store import Store
from edge_runtime.store.versions import Version, read_versions

if TYPE_CHECKING:
    from edge_runtime.values import FloatVector

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
NAMES = ["pi-1", "pi-2", "pi-3", "pi-4"]


def versions(fleet: Fleet) -> list[Version | None]:
    return [read_versions(Store(fleet.root / name / "covey-state")).current for name in NAMES]


def wait_state(fleet: Fleet, number: int, state: str, group: int) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        shown = fleet.covey("rollout", "show", str(number))
        return shown if (shown["state"], shown["group"]) == (state, group) else None

    return dict(wait_for(found, f"rollout {number} that is {state}", 120.0))


def if_switched(fleet: Fleet, number: int, count: int) -> dict[str, Any] | None:
    shown = fleet.covey("rollout", "show", str(number))
    return shown if shown["switched"] == count else None


def start(fleet: Fleet, theta: FloatVector, *flags: str) -> dict[str, Any]:
    path = fleet.root / f"{adapter_sha256(theta)}.bin"
    path.write_bytes(theta.astype("<f4").tobytes())
    return fleet.covey("rollout", "start", "adapter", str(path), "--bundle", str(fleet.bundle.path), *flags)


def test_a_good_adapter_goes_through_a_killed_server_goes_on_and_a_bad_one_stops_itself(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    assert "no device is known" in fleet.covey("rollout", "start", "bundle", str(fleet.bundle.path), code=3)["error"]
    for seed, name in enumerate(NAMES):
        fleet.device(name, seed, stays=True)
    wait_for(lambda: sum(d["state"] == "online" for d in fleet.covey("device", "list")["devices"]) == 4, "devices", 90)
    initial = fleet.bundle.initial_adapter()
    theta = (initial + np.random.default_rng(1).normal(0, 0.3, initial.size)).astype(np.float32)
    # group by group, with a server that is killed between two of them
    assert start(fleet, theta, "--groups", "1,100%", "--approve")["state"] == "waiting"
    assert versions(fleet) == [None] * 4
    fleet.covey("rollout", "resume")
    wait_state(fleet, 1, "waiting", 2)
    assert sum(version is not None for version in versions(fleet)) == 1
    server.popen.kill()
    server.popen.wait()
    fleet.stay().wait_event("serving")
    assert fleet.covey("rollout", "resume", "1")["state"] == "running"
    wait_state(fleet, 1, "finished", 2)
    # A device that the killed server's end has cut off is asked when it is back: the rollout does not wait for it.
    done = wait_for(lambda: if_switched(fleet, 1, 4), "all four devices to have switched", 300.0)
    assert done["failed"] == 0
    good = Version(fleet.bundle.sha256, adapter_sha256(theta), 1)
    assert versions(fleet) == [good] * 4
    # a bad one halts in its first group, and is on no device
    start(fleet, (np.sign(theta) * np.float32(1e38)).astype(np.float32), "--groups", "50%,100%")
    halted = wait_state(fleet, 2, "halted", 1)
    assert "not finite" in halted["reason"]
    assert [device["state"] for device in halted["group_list"][1]["devices"]] == ["pending", "pending"]
    assert versions(fleet) == [good] * 4
    # one that the operator takes back
    start(fleet, theta * np.float32(1.5), "--groups", "2,100%", "--soak", "1h")
    wait_state(fleet, 3, "soaking", 1)
    assert sum(version != good for version in versions(fleet)) == 2
    fleet.covey("rollout", "abort")
    wait_state(fleet, 3, "aborted", 1)
    assert versions(fleet) == [good] * 4
    assert "cannot resume" in fleet.covey("rollout", "resume", "3", code=11)["error"]
    assert [one["state"] for one in fleet.covey("rollout", "list")["rollouts"]] == ["finished", "halted", "aborted"]
