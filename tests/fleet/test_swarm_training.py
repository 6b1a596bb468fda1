"""``covey swarm --bundle``: sessions that train, with the steps and the bits of a device."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from fleets import Fleet, free_port, wait_for, write_edge
from swarms import ended, result, submit, swarm
from tiny_models import reviews, write_rows

from edge_runtime.errors import BundleError, ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(600)


def final_adapter(fleet: Fleet, name: str) -> str:
    (job,) = [one for one in fleet.covey("job", "list")["jobs"] if one["job"] == name]
    return str(job["adapter_sha256"])


def test_sessions_train_and_their_reports_are_taken(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    submit(fleet, "load", rounds=3, steps=2, min_devices=6, min_reports=6, cohort=6)
    running = swarm(fleet, "--devices", "6", "--processes", "2", "--bundle", str(fleet.bundle.path))
    assert wait_for(lambda: ended(server, "load"), "end of the job") == "finished"
    running.popen.send_signal(signal.SIGINT)
    found = result(running)
    assert found["reports"] == {"taken": 18}
    assert (found["rounds_trained"], found["rounds_given_up"], found["plans_refused"]) == (18, 0, 0)
    assert found["training_s"] > 0
    assert list(found["proved"].values()) == [6]
    assert found["lost_reports"] == found["left_open"] == found["processes_killed"] == 0


def test_a_session_trains_what_a_device_of_its_name_would_on_the_same_rows(tmp_path: Path, tiny_bundle: Bundle) -> None:
    """Two fleets, each of one: the same job ends on the same adapter, bit for bit."""
    adapters = []
    for kind in ("device", "session"):
        fleet = Fleet(tmp_path / kind, tiny_bundle, free_port(), external=False)
        fleet.root.mkdir()
        try:
            server = fleet.stay()
            server.wait_event("serving")
            submit(fleet, "load", rounds=2, steps=3, seed=7, min_devices=1, min_reports=1)
            rows = write_rows(reviews(20, 5), fleet.root / "rows.jsonl")
            if kind == "device":
                folder = fleet.root / "own"
                folder.mkdir()
                config = write_edge(folder, "swarm-00001", fleet.port, 0, tags=["swarm"])
                (folder / "data.jsonl").write_bytes(rows.read_bytes())
                fleet._start("edge_runtime.cli", ["run", "--config", str(config)], "device")
            else:
                flags = ("--bundle", str(tiny_bundle.path), "--rows", str(rows))
                swarm(fleet, "--devices", "1", *flags)
            assert wait_for(lambda server=server: ended(server, "load"), "end of the job") == "finished"
            adapters.append(next(e for e in reversed(server.events()) if e.get("adapter_sha256"))["adapter_sha256"])
        finally:
            fleet.stop()
    assert adapters[0] == adapters[1]


def test_a_plan_of_another_bundle_is_refused_with_what_to_give(
    fleet: Fleet, tiny_export: Callable[..., Bundle]
) -> None:
    other = tiny_export("bert", train="full")
    server = fleet.stay()
    server.wait_event("serving")
    submit(fleet, "load", rounds=1, min_devices=1, min_reports=1)
    running = swarm(fleet, "--devices", "1", "--bundle", str(other.path))
    wait_for(lambda: "plans refused: this swarm trains bundle" in running.stderr.read_text(), "the refusal")
    running.popen.send_signal(signal.SIGINT)
    found = result(running)
    assert found["plans_refused"] >= 1
    assert found["refusal"].startswith(f"this swarm trains bundle {other.sha256[:12]}, the plan names")


@pytest.mark.parametrize("wrong", ["bundle", "rows"])
def test_a_bundle_or_rows_that_cannot_be_used_end_the_swarm_before_anybody_logs_in(fleet: Fleet, wrong: str) -> None:
    fleet.stay().wait_event("serving")
    nowhere = str(fleet.root / "nowhere")
    bundle = nowhere if wrong == "bundle" else str(fleet.bundle.path)
    rows = nowhere if wrong == "rows" else str(write_rows(reviews(5, 1), fleet.root / "rows.jsonl"))
    running = swarm(fleet, "--devices", "2", "--bundle", bundle, "--rows", rows)
    error = BundleError if wrong == "bundle" else DataError
    said: dict[str, Any] = result(running, error.exit_code)
    assert nowhere in said["error"]
    assert fleet.covey("device", "list")["devices"] == []


def test_rows_without_a_bundle_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from server.cli import main

    assert main(["swarm", "--devices", "2", "--broker", "mqtt://x", "--rows", "rows.jsonl"]) == ConfigError.exit_code
    assert "no bundle is given" in capsys.readouterr().err
