"""A wheel that is rolled out reaches a board that ``covey provision ssh`` has set up; a bad one goes back by itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from fleets import wait_for
from provisioning import Desk, board_wheels
from ssh_board import Board, require_board, ssh_board
from tiny_models import reviews, write_rows
from trusted import TrustedFleet
from wheels import changed_wheel

from server.flash.device_wheel import make_device_wheel
from server.flash.payload import SERVICES, UNITS
from server.flash.places import RUNNING, SLOTS

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
RUN = "edge_runtime/commands/run.py"
START = "    from edge_runtime.agent.agent import Agent\n"


def ended(fleet: TrustedFleet, number: int) -> dict[str, Any]:
    """Wait until a rollout has ended."""

    def found() -> dict[str, Any] | None:
        shown = fleet.covey("rollout", "show", str(number))
        return shown if shown["state"] in ("finished", "halted", "aborted", "failed") else None

    return dict(wait_for(found, f"end of rollout {number}", 600.0))


def status(board: Board) -> dict[str, Any]:
    """Return what the board's own command says of its slots, as the user of the service."""
    command = f"cd /; runuser -u covey -- {RUNNING}/bin/covey-edge update status --root {SLOTS} --format json"
    found: dict[str, Any] = json.loads(board.shell(command).splitlines()[-1])
    return found


def announced(fleet: TrustedFleet) -> str:
    (device,) = fleet.covey("device", "list")["devices"]
    return str(device["covey_version"]) if device["state"] == "online" else ""


def test_a_wheel_reaches_a_provisioned_board_and_a_bad_one_goes_back(tmp_path: Path, tiny_bundle: Bundle) -> None:
    require_board()
    fleet = TrustedFleet(tmp_path / "fleet", tiny_bundle)
    try:
        fleet.open()
        rows = tmp_path / "mine.jsonl"
        write_rows(reviews(12, 5), rows)
        desk = Desk(tmp_path, fleet, board_wheels(tmp_path / "wheels"))
        with ssh_board(tmp_path / "board") as board:
            assert desk.provision(board, "pi", "--data", str(rows), "--yes")["born"]
            assert board.shell(f"find {SLOTS} ! -user covey") == ""
            assert board.shell("stat -c '%U %a' /opt/covey/launcher.pyz").split() == ["root", "644"]
            first = status(board)
            assert (first["current"]["slot"], first["previous"], first["launcher_runs"]) == ("a", None, True)
            version = first["current"]["version"]
            # Five minutes of trial are a little long for a test.
            board.shell(
                f"sed -i 's/^ExecStart=.*/& --health-timeout 120 --probation 2/' {UNITS}/{SERVICES[1]}; "
                f"systemctl restart {SERVICES[1]}"
            )
            wheel, _ = make_device_wheel(tmp_path, "x86_64")
            fleet.covey("rollout", "start", "wheel", str(changed_wheel(wheel, "0.2.0")), "--groups", "100%")
            assert ended(fleet, 1)["state"] == "finished", status(board)
            wait_for(lambda: announced(fleet) == "0.2.0", "birth of the new version", 120.0)
            assert status(board)["previous"]["version"] == version

            again = desk.provision(board, "pi", "--dry-run")
            assert [step["action"] for step in again["steps"]] == ["files", "start"]  # the unit that was changed above

            edits = {RUN: (START, "    raise RuntimeError('broken on purpose')\n")}
            bad = changed_wheel(wheel, "0.3.0", edits)
            fleet.covey("rollout", "start", "wheel", str(bad), "--groups", "100%")
            assert ended(fleet, 2)["state"] == "halted", status(board)
            found = status(board)
            assert (found["current"]["version"], found["outcome"]["result"]) == ("0.2.0", "rolled-back")
            wait_for(lambda: announced(fleet) == "0.2.0", "birth of the version before", 120.0)

            desk.provision(board, "pi", "--data", str(rows), "--yes")  # it waits for the birth of 0.2.0, and gets it
            assert status(board)["current"]["version"] == "0.2.0"
            _provisioned_anew(desk, board, rows)
            assert status(board)["current"]["version"] == version
            assert sorted(board.shell(f"ls -d {SLOTS}/env-*").split()) == [f"{SLOTS}/env-a"]
    finally:
        fleet.stop()


def _provisioned_anew(desk: Desk, board: Board, rows: Path) -> None:
    """Provision a board whose note says that it has another environment than the server would give it."""
    board.shell('sed -i \'s/"environment": "/&00/\' /opt/covey/card.json')
    found = desk.provision(board, "pi", "--data", str(rows), "--yes")
    assert "environment" in [step["action"] for step in found["steps"]]
    assert found["born"]
