"""Rollouts in a fleet with an authority: signed adapters, and versions of Covey that come up or go back."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleets import wait_for
from trusted import TrustedFleet
from wheels import build_wheel, changed_wheel

from edge_runtime.store.store import Store
from edge_runtime.store.versions import read_versions
from edge_runtime.update.requests import known_state
from edge_runtime.update.slots import installed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

RUN = "edge_runtime/commands/run.py"
START = "    from edge_runtime.agent.agent import Agent\n"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def fleet(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    made = TrustedFleet(tmp_path, tiny_bundle)
    made.open()
    yield made
    made.stop()


def ended(fleet: TrustedFleet, number: int) -> dict[str, Any]:
    """Wait until a rollout has ended; return what is shown of it."""

    def found() -> dict[str, Any] | None:
        shown = fleet.covey("rollout", "show", str(number))
        return shown if shown["state"] in ("finished", "halted", "aborted") else None

    return dict(wait_for(found, f"the end of rollout {number}", 600.0))


def test_the_adapter_of_a_job_is_rolled_out_signed(fleet: TrustedFleet) -> None:
    fleet.join("a")
    fleet.join("b", 1)
    for name in ("a", "b"):
        fleet.start(name)
    wait_for(lambda: list(fleet.states().values()).count("online") == 2, "both devices")
    fleet.submit("first", rounds=2, min_devices=2)
    assert fleet.covey("job", "watch", "first")["state"] == "finished"
    fleet.covey("rollout", "start", "adapter", "first", "--groups", "1,100%")
    shown = ended(fleet, 1)
    assert (shown["state"], shown["switched"]) == ("finished", 2)
    for name in ("a", "b"):
        current = read_versions(Store(fleet.config(name).parent / "covey-state")).current
        assert current is not None
        assert (current.bundle_sha256, current.rollout) == (fleet.bundle.sha256, 1)


def bare() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Launched:
    """A device of the fleet that runs from slots."""

    def __init__(self, fleet: TrustedFleet, name: str) -> None:
        self.config, self.root = fleet.join(name), fleet.root / f"{name}-slots"
        wheels = fleet.root / "wheels"
        wheels.mkdir()
        self.wheel = build_wheel(wheels)
        setup = ["update", "setup", str(self.wheel), "--config", str(self.config), "--root", str(self.root)]
        subprocess.run([sys.executable, "-m", "edge_runtime.cli", *setup], check=True, timeout=600, capture_output=True)
        command = [sys.executable, "-I", str(self.root / "launcher.pyz"), "--config", str(self.config)]
        with (fleet.root / "launcher.log").open("ab") as log:
            self.launcher = subprocess.Popen(
                [*command, "--health-timeout", "60", "--probation", "2"], stdout=log, stderr=log, env=bare()
            )

    def version(self) -> str:
        return installed(self.root)[known_state(self.root).current].version

    def stop(self) -> None:
        self.launcher.terminate()
        self.launcher.wait(60)


def test_a_version_of_covey_is_rolled_out_and_one_that_does_not_come_up_stops_its_rollout(fleet: TrustedFleet) -> None:
    device = Launched(fleet, "a")
    try:
        wait_for(lambda: fleet.states().get("a") == "online", "the device", 120.0)
        good = changed_wheel(device.wheel, "9.1")
        fleet.covey("rollout", "start", "wheel", str(good), "--groups", "100%")
        shown = ended(fleet, 1)
        assert (shown["state"], shown["switched"]) == ("finished", 1), shown
        assert device.version() == "9.1"

        bad = changed_wheel(
            device.wheel, "9.2", {RUN: (START, "    raise RuntimeError('it does not start')\n" + START)}
        )
        fleet.covey("rollout", "start", "wheel", str(bad), "--groups", "100%")
        shown = ended(fleet, 2)
        assert shown["state"] == "halted", shown
        assert device.version() == "9.1"
        assert "9.2 was tried here and is rolled-back" in str(shown)
        wait_for(lambda: fleet.states().get("a") == "online", "the version before", 120.0)
    finally:
        device.stop()
