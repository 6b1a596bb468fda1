"""A runtime that ends its process does not end the device: the plan is refused with the reason, and doctor says it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bench import Bench, bench_of, drain, sync
from fleets import Fleet, free_port, wait_for, write_job

from edge_runtime.agent.agent import Agent
from edge_runtime.agent.announcer import lost_will
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.errors import BundleError, ConfigError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.reports import PlanRefused, Synced
from edge_runtime.store.trials import read_trials

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

ABORT = "import os, sys\nsys.stderr.write('cpuinfo: unknown vendor\\n')\nsys.stderr.flush()\nos.abort()\n"


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def contained_agent(bench: Bench) -> Agent:
    transport = bench.hub.join(lost_will(bench.config, "boot"))
    return Agent(bench.config, bench.store, transport, "boot", contained=True)


def answers(bench: Bench, agent: Agent, plan: Any) -> list[Any]:
    """Give an agent a plan, and return its reports."""
    server = bench.hub.join()
    server.subscribe(bench.topic("report"))
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    for _ in range(3):  # the hello, perhaps, and the plan
        agent.serve_waiting()
    return drain(server)


@pytest.mark.timeout(900)
def test_a_device_whose_runtime_aborts_refuses_and_lives_while_others_train(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "onnxruntime.py").write_text(ABORT)
    try:
        server = fleet.serve(write_job(tmp_path, rounds=4, min_devices=2, min_reports=1))
        fleet.device("good", 0)
        with monkeypatch.context() as patch:
            patch.setenv("PYTHONPATH", os.pathsep.join([str(modules), *filter(None, sys.path)]))
            bad = fleet.device("bad", 1, stays=True)
            server.wait_event("round_closed", 4)  # the good device has trained each
            wait_for(lambda: "SIGABRT" in bad.stderr.read_text(), "the refusal")
            assert bad.popen.poll() is None
            assert "onnxruntime" not in Path(f"/proc/{bad.popen.pid}/maps").read_text()
            devices = fleet.covey("device", "list")["devices"]
            assert "SIGABRT" in next(json.dumps(device) for device in devices if device["device"] == "bad")
            code, trial = doctor(tmp_path / "bad" / "edge.toml")
        assert (code, trial["status"]) == (ConfigError.exit_code, "problem")
        assert "unknown vendor" in trial["found"]
        code, trial = doctor(tmp_path / "bad" / "edge.toml")  # the wheel is repaired
        assert trial["status"] == "ok"
        assert "passes now" in trial["found"]
        assert bad.popen.poll() is None
    finally:
        fleet.stop()


def doctor(config: Path) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "edge_runtime.cli", "doctor", "--config", str(config), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("{"), (done.returncode, done.stdout, done.stderr)
    checks = {check["check"]: check for check in json.loads(done.stdout)["checks"]}
    return done.returncode, checks["trial"]


def test_a_repaired_runtime_is_tried_again_with_the_next_plan_and_never_after_that(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "onnxruntime.py").write_text(ABORT)
    plan = sync(bench, bench.initial())
    agent = contained_agent(bench)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(modules))
        (refused,) = answers(bench, agent, plan)
        assert isinstance(refused, PlanRefused)
        assert refused.code == ConfigError.exit_code
        assert "SIGABRT" in refused.message
        assert "what to do" in refused.message
    (synced,) = answers(bench, agent, plan)
    assert isinstance(synced, Synced)
    assert len(read_trials(bench.store.root).passed) == 1
    with monkeypatch.context() as patch:  # a restart: the combination is known, no child is started
        patch.setattr(sys, "executable", "/nowhere/python")
        (synced,) = answers(bench, contained_agent(bench), plan)
        assert isinstance(synced, Synced)
    (bench.store.root / "trials.json").unlink()
    with monkeypatch.context() as patch:  # the bundle is on disk, but was never tried with these libraries
        patch.syspath_prepend(str(modules))
        (refused,) = answers(bench, contained_agent(bench), plan)
        assert "SIGABRT" in refused.message
    assert (bench.store.bundles / bench.bundle.sha256).is_dir()


def test_many_devices_in_one_process_start_no_child(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    (synced,) = answers(bench, bench.agent(), sync(bench, bench.initial()))
    assert isinstance(synced, Synced)
    assert not (bench.store.root / "trials.json").exists()


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}
"""A normalizer that makes the tokenizers library panic: an exception that is no Exception."""


@pytest.mark.parametrize("contained", [False, True])
def test_a_panic_of_the_tokenizer_is_a_refusal_too(bench: Bench, bundle_copy: Bundle, *, contained: bool) -> None:
    name = bundle_copy.manifest.tokenizer_file
    tokenizer = json.loads((bundle_copy.path / name).read_bytes()) | {"normalizer": CHARSMAP}
    (bundle_copy.path / name).write_text(json.dumps(tokenizer))
    changed = signed_again(bundle_copy, name)
    bench.blobs.add_bundle(changed)
    transport = bench.hub.join(lost_will(bench.config, "boot"))
    agent = Agent(bench.config, bench.store, transport, "boot", contained=contained)
    plan = bench.train_plan(bench.initial(), bundle_sha256=changed.sha256)
    refused = answers(bench, agent, plan)[-1]
    assert isinstance(refused, PlanRefused)
    assert (refused.code, "panicked" in refused.message) == (BundleError.exit_code, True)


def signed_again(bundle: Bundle, changed: str) -> Bundle:
    """Return a bundle whose manifest has the size and hash of a file that was changed."""
    path, data = bundle.path / "manifest.json", (bundle.path / changed).read_bytes()
    manifest = json.loads(path.read_bytes())
    (entry,) = [entry for entry in manifest["files"] if entry["path"] == changed]
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    path.write_text(json.dumps(manifest))
    return open_bundle(bundle.path)
