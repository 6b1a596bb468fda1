"""A device that is given a version of Covey asks its launcher, and says what became of it once that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from slots import FakeSlots

from edge_runtime.agent.new_covey import LauncherSlots, NotYetError
from edge_runtime.errors import UpdateError
from edge_runtime.update.requests import read_request, request_switch
from edge_runtime.update.state import Outcome, State, Trial, write_state

if TYPE_CHECKING:
    from pathlib import Path

SHA = b"9.0".hex().ljust(64, "0")


@pytest.fixture
def slots(tmp_path: Path) -> FakeSlots:
    return FakeSlots(tmp_path / "slots")


@pytest.fixture
def covey(slots: FakeSlots) -> LauncherSlots:
    return LauncherSlots(slots.root, slots.root / "edge.toml")


def test_a_version_that_runs_and_is_accepted_is_there(slots: FakeSlots, covey: LauncherSlots, tmp_path: Path) -> None:
    slots.put("b", "9.0", "serve")
    write_state(slots.root, State("b", previous="a"))
    covey.switch(tmp_path / "no wheel is needed", SHA)
    covey.back("0" * 64)  # another one runs: nothing to go back from
    assert read_request(slots.root) is None


def test_while_a_version_is_on_trial_the_answer_waits(slots: FakeSlots, covey: LauncherSlots, tmp_path: Path) -> None:
    found = slots.put("b", "9.0", "serve")
    request_switch(slots.root, found)
    for _ in range(2):
        with pytest.raises(NotYetError, match="on trial"):
            covey.switch(tmp_path / "wheel", SHA)
        write_state(slots.root, State("b", trial=Trial("update", "a")))


@pytest.mark.parametrize("result", ["rolled-back", "refused"])
def test_a_version_that_did_not_come_up_is_said_with_its_reason(
    slots: FakeSlots, covey: LauncherSlots, tmp_path: Path, result: str
) -> None:
    outcome = Outcome("update", result, "0.1", "9.0", SHA, "it ended with exit code 1", 1.0)
    write_state(slots.root, State("a", outcome=outcome))
    with pytest.raises(UpdateError, match=f"9.0 was tried here and is {result}: it ended with exit code 1"):
        covey.switch(tmp_path / "wheel", SHA)


def test_the_launcher_is_asked_to_go_back(slots: FakeSlots, covey: LauncherSlots) -> None:
    slots.put("b", "9.0", "serve")
    first = slots.put("a", "0.1", "serve")
    write_state(slots.root, State("b", previous="a", previous_sha256=first.sha256))
    with pytest.raises(NotYetError, match="goes back"):
        covey.back(SHA)
    asked = read_request(slots.root)
    assert asked is not None
    assert (asked.kind, asked.slot) == ("rollback", "a")
    assert msgspec.to_builtins(asked.sha256) == first.sha256


def test_a_file_that_is_no_wheel_is_refused_before_anything_is_asked(
    slots: FakeSlots, covey: LauncherSlots, tmp_path: Path
) -> None:
    wheel = tmp_path / "covey-9.0-py3-none-any.whl"
    wheel.write_bytes(b"none")
    with pytest.raises(UpdateError):
        covey.switch(wheel, SHA)
    assert read_request(slots.root) is None
