"""``covey serve`` stays, jobs come and go: real server, broker, device and command processes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fleets import Fleet, free_port, wait_for, write_job

from server.client.address import TOKEN_FILE, socket_path

if TYPE_CHECKING:
    from pathlib import Path


pytestmark = pytest.mark.timeout(900)


def submit(fleet: Fleet, name: str, *flags: str, code: int = 0, **fields: Any) -> dict[str, Any]:
    """Write a job and submit it."""
    folder = fleet.root / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    job = write_job(folder, name=name, **fields)
    return fleet.covey("job", "submit", str(job), "--bundle", str(fleet.bundle.path), *flags, code=code)


def state_of(fleet: Fleet, name: str) -> str:
    return str(fleet.covey("job", "show", name)["state"])


def wait_state(fleet: Fleet, name: str, *states: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        shown = fleet.covey("job", "show", name)
        return shown if shown["state"] in states else None

    return dict(wait_for(found, f"job {name} that is {states}", 120.0))


def here(fleet: Fleet, count: int) -> None:
    """Wait until devices have answered the server's hello."""
    wait_for(
        lambda: sum(d["state"] == "online" for d in fleet.covey("device", "list")["devices"]) >= count, "devices", 90.0
    )


def test_jobs_come_and_go_while_the_fleet_stays(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    fleet.device("pi-1", 0, stays=True)
    fleet.device("pi-2", 1, stays=True)
    here(fleet, 2)
    assert submit(fleet, "first", rounds=3, min_devices=2)["state"] == "queued"
    submit(fleet, "second", "--after", "first", rounds=2)
    watched = fleet.covey("job", "watch", "first")
    assert (watched["state"], watched["job"]) == ("finished", "first")
    second = wait_state(fleet, "second", "finished")
    assert (second["rounds"], second["devices"]) == (2, 2)
    compared = fleet.covey("job", "compare", "first", "second")
    assert [len([v for v in row["loss"] if v is not None]) for row in compared["rounds"]] == [2, 2, 1]
    assert server.popen.poll() is None
    server.popen.send_signal(signal.SIGTERM)
    assert server.popen.wait(60) == 0
    jobs = fleet.covey("job", "list")["jobs"]  # from the ledger
    assert [(job["job"], job["state"]) for job in jobs] == [("first", "finished"), ("second", "finished")]
    assert fleet.covey("job", "stop", "first", code=7)["error"].startswith("no server answers")


@pytest.mark.slow
def test_jobs_of_different_tags_run_side_by_side_and_of_the_same_in_turn(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    fleet.covey("device", "tag", "garden-pi", "garden")
    submit(fleet, "kitchen", "--allow-absent", devices="tag:kitchen", rounds=4)
    submit(fleet, "garden", devices="tag:garden", rounds=4)
    submit(fleet, "all", rounds=1, min_devices=2)
    submit(fleet, "urgent", "--priority", "5", rounds=1, devices="garden-pi")
    wait_state(fleet, "kitchen", "running")
    wait_state(fleet, "garden", "running")
    wait_for(lambda: fleet.covey("job", "show", "all")["reason"], "why it waits")
    waits = {name: fleet.covey("job", "show", name) for name in ("urgent", "all")}
    assert {name: job["state"] for name, job in waits.items()} == {"urgent": "queued", "all": "queued"}
    assert waits["urgent"]["reason"] == "waits for devices of garden"
    assert waits["all"]["reason"] == "waits for devices of kitchen, garden, urgent"
    fleet.device("kitchen-pi", 0, stays=True, tags=["kitchen"])
    fleet.device("garden-pi", 1, stays=True)
    for name in ("kitchen", "garden", "all", "urgent"):
        wait_state(fleet, name, "finished")
    shown = {name: fleet.covey("job", "show", name) for name in ("kitchen", "garden", "all", "urgent")}
    devices = {name: [d["device"] for d in job["device_list"]] for name, job in shown.items()}
    assert devices == {
        "kitchen": ["kitchen-pi"],
        "garden": ["garden-pi"],
        "all": ["garden-pi", "kitchen-pi"],
        "urgent": ["garden-pi"],
    }
    order = [(e["job"], e["event"]) for e in server.events() if e["event"] in ("round_opened", "job")]
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for at, (job, _event) in enumerate(order):
        first.setdefault(job, at)
        last[job] = at
    assert first["urgent"] > last["garden"]
    assert first["all"] > last["urgent"]


@pytest.mark.slow
def test_a_job_is_paused_resumed_stopped_and_deleted(fleet: Fleet) -> None:
    fleet.stay().wait_event("serving")
    fleet.device("pi", 0, stays=True)
    here(fleet, 1)
    submit(fleet, "long", rounds=400, steps=4)
    wait_for(lambda: fleet.covey("job", "show", "long")["rounds"] >= 1, "a round", 90.0)
    assert fleet.covey("job", "pause", "long")["state"] in ("pausing", "paused")
    paused = wait_state(fleet, "long", "paused")
    assert all(row["state"] == "aggregated" for row in paused["round_list"])
    assert fleet.covey("job", "pause", "long", code=11)["error"] == "cannot pause job long: it is paused"
    fleet.covey("job", "resume", "long")
    wait_for(lambda: fleet.covey("job", "show", "long")["rounds"] > paused["rounds"], "another round", 90.0)
    assert fleet.covey("job", "delete", "long", "--yes", code=11)["error"].startswith("cannot delete job long")
    fleet.covey("job", "stop", "long")
    stopped = fleet.covey("job", "show", "long")
    assert stopped["state"] == "stopped"
    submit(fleet, "short", rounds=1)
    wait_state(fleet, "short", "finished")  # the stopped job's devices are free
    assert fleet.covey("job", "delete", "long", "--yes")["state"] == "deleted"
    assert fleet.covey("job", "show", "long", code=11)["error"] == "there is no job long"
    submit(fleet, "long", rounds=1)
    assert wait_state(fleet, "long", "finished")["rounds"] == 1


def test_a_killed_server_goes_on_with_its_jobs(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    fleet.device("pi", 0, stays=True)
    here(fleet, 1)
    submit(fleet, "first", rounds=6, steps=20)
    submit(fleet, "second", rounds=2)
    wait_for(lambda: fleet.covey("job", "show", "first")["rounds"] >= 1, "a round", 90.0)
    server.popen.kill()
    server.popen.wait()
    fleet.stay().wait_event("serving")
    assert wait_state(fleet, "first", "finished")["rounds"] == 6
    assert wait_state(fleet, "second", "finished")["rounds"] == 2


@pytest.mark.slow
def test_a_pause_is_remembered_by_a_server_that_is_killed_before_the_round_ends(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    fleet.device("pi", 0, stays=True)
    here(fleet, 1)
    submit(fleet, "job", rounds=2, steps=4096)
    server.wait_event("round_opened")
    assert fleet.covey("job", "pause", "job")["state"] == "pausing"
    assert "once its open round is over" in fleet.covey("job", "show", "job")["reason"]
    server.popen.kill()
    server.popen.wait()
    fleet.stay().wait_event("serving")
    assert state_of(fleet, "job") == "paused"


def test_wrong_submissions_name_what_is_wrong(fleet: Fleet) -> None:
    fleet.stay().wait_event("serving")
    submit(fleet, "twice", "--allow-absent", rounds=1, devices="absent-pi")
    assert "there is a job twice already" in submit(fleet, "twice", code=11)["error"]
    assert "no device of fleet default has the tag attic" in submit(fleet, "a", code=3, devices="tag:attic")["error"]
    assert "never seen a device nobody" in submit(fleet, "b", code=3, devices="nobody")["error"]
    assert "neither a device's name nor tag:NAME" in submit(fleet, "c", code=3, devices="tag:a b")["error"]
    assert "there is no job nothing" in submit(fleet, "d", "--after", "nothing", code=11)["error"]
    assert "did you mean `devices`?" in submit(fleet, "e", code=3, device="pi")["error"]
    assert "--bundle BUNDLE --job job.toml" in fleet.covey("serve", "--job", "x", code=3)["hint"]
    job = write_job(fleet.root, name="gone")
    away = fleet.root / "away"
    assert fleet.covey("job", "submit", str(job), "--bundle", str(away), code=5)["error"]


@pytest.mark.slow
def test_a_job_whose_bundle_is_gone_fails_with_the_reason_and_can_be_resumed(fleet: Fleet, tmp_path: Path) -> None:
    import shutil

    server = fleet.stay()
    server.wait_event("serving")
    copy = tmp_path / "copy"
    shutil.copytree(fleet.bundle.path, copy)
    job = write_job(fleet.root, name="job", rounds=1, devices="pi")
    fleet.covey("job", "submit", str(job), "--bundle", str(copy), "--allow-absent", "--after", submitted(fleet))
    copy.rename(tmp_path / "aside")
    fleet.device("pi", 0, stays=True)
    failed = wait_state(fleet, "job", "failed")
    assert str(copy) in failed["reason"]
    (tmp_path / "aside").rename(copy)
    fleet.covey("job", "resume", "job")
    assert wait_state(fleet, "job", "finished")["rounds"] == 1


def submitted(fleet: Fleet) -> str:
    """Submit a job that needs the device ``pi``, which is not there yet; return its name."""
    submit(fleet, "before", "--allow-absent", rounds=1, devices="pi")
    return "before"


@pytest.mark.slow
def test_a_device_s_log_is_read_and_its_last_lines_before_a_crash(fleet: Fleet) -> None:
    fleet.stay().wait_event("serving")
    fleet.device("pi", 0, stays=True)
    here(fleet, 1)
    submit(fleet, "job", rounds=2)
    wait_state(fleet, "job", "finished")
    asked = fleet.lines("device", "logs", "pi")
    assert any("round 1: loss" in line["text"] for line in asked)
    assert {line["reason"] for line in asked} == {"asked"}
    victim = fleet.device("victim", 1, stays=True)
    here(fleet, 2)
    victim.popen.kill()
    victim.popen.wait()
    wait_for(lambda: [d["state"] for d in fleet.covey("device", "list")["devices"]][1] != "online", "its will", 90.0)
    assert "victim is not here" in fleet.covey("device", "logs", "victim", code=3)["error"]
    fleet.device("victim", 1, stays=True)
    here(fleet, 2)
    lines = fleet.lines("device", "logs", "victim")
    assert {line["reason"] for line in lines} >= {"crash"}
    assert "nobody is not here: never seen" in fleet.covey("device", "logs", "nobody", code=3)["error"]


@pytest.mark.slow
def test_a_device_is_forgotten_once_it_is_gone(fleet: Fleet) -> None:
    server = fleet.stay()
    server.wait_event("serving")
    device = fleet.device("pi", 0, stays=True)
    here(fleet, 1)
    fleet.covey("device", "tag", "pi", "attic")
    assert "pi is here now" in fleet.covey("device", "forget", "pi", code=3)["error"]
    assert "has no tag cellar" in fleet.covey("device", "untag", "pi", "cellar", code=3)["error"]
    device.popen.send_signal(signal.SIGTERM)
    assert device.popen.wait(60) == 0
    wait_for(lambda: fleet.covey("device", "list")["devices"][0]["state"] == "offline", "goodbye", 90.0)
    fleet.covey("device", "forget", "pi")
    assert fleet.covey("device", "list")["devices"] == []
    assert "has no device pi" in fleet.covey("device", "forget", "pi", code=3)["error"]


@pytest.mark.slow
def test_a_server_s_state_and_what_its_doctor_finds(fleet: Fleet) -> None:
    absent = fleet.covey("server", "doctor", "--mqtt-port", str(fleet.port), "--http-port", "0")
    assert {check["check"]: check["status"] for check in absent["checks"]} == {
        "server": "absent",
        "disk": "ok",
        "descriptors": absent["checks"][2]["status"],
        "http port": "ok",
        "mqtt port": "ok",
        "broker": "ok",
        "ledger": "absent",
    }
    fleet.stay().wait_event("serving")
    status = fleet.covey("server", "status")
    assert (status["fleet"], status["mqtt_port"], status["jobs_at_work"]) == ("default", fleet.port, [])
    submit(fleet, "job", "--allow-absent", rounds=1, devices="nobody")
    (fleet.root / "jobs" / "job" / "test.jsonl").unlink()
    found = fleet.covey("server", "doctor", code=3)
    problems = [check for check in found["checks"] if check["status"] == "problem"]
    assert [check["check"] for check in problems] == ["job job"]
    assert "is gone" in problems[0]["found"]
    job = write_job(fleet.root / "jobs", name="other")
    second = fleet.covey("run", "--job", str(job), "--bundle", str(fleet.bundle.path), code=11)
    assert "another server uses" in second["error"]


def test_the_api_over_tcp_needs_the_token(fleet: Fleet) -> None:
    port = free_port()
    fleet.stay("--mqtt-port", str(fleet.port), "--api-port", str(port)).wait_event("serving")
    base = f"http://127.0.0.1:{port}"
    for headers in ({}, {"authorization": "Bearer wrong"}):
        answer = httpx.get(f"{base}/api/v1/jobs", headers=headers)
        assert (answer.status_code, answer.json()["exit_code"]) == (401, 3)
    token = fleet.state_dir / TOKEN_FILE
    assert token.stat().st_mode & 0o077 == 0
    assert fleet.covey("job", "list", "--server", base, "--token-file", str(token)) == {"jobs": []}
    wrong = fleet.root / "wrong"
    wrong.write_text("not the token")
    refused = fleet.covey("job", "list", "--server", base, "--token-file", str(wrong), code=3)
    assert refused["error"] == "the token is missing or wrong"
    described = httpx.get(
        f"{base}/api/v1/schema/openapi.json", headers={"authorization": f"Bearer {token.read_text().strip()}"}
    ).json()
    assert "/api/v1/jobs/{name}/pause" in described["paths"]
    assert set(described["components"]["schemas"]) >= {"Submission", "JobStatus", "DeviceStatus", "ServerStatus"}
    assert socket_path(fleet.state_dir).stat().st_mode & 0o177 == 0
