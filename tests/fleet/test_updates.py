"""Real wheels of Covey on a device that runs: a good one is accepted, bad ones go back, and nothing needs a network."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fleets import free_port, has_mosquitto, mosquitto, wait_for, write_edge
from wheels import build_wheel, changed_wheel

from edge_runtime.errors import UpdateError
from edge_runtime.files.hashing import file_sha256
from edge_runtime.store.journal import Journal
from edge_runtime.store.store import Store
from edge_runtime.update.install import install_in_process
from edge_runtime.update.requests import last_outcome, request_switch
from edge_runtime.update.slots import installed

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

RUN = "edge_runtime/commands/run.py"
START = "    from edge_runtime.agent.agent import Agent\n"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed"),
    pytest.mark.timeout(900),
]


def bare() -> dict[str, str]:
    """Return the environment without the path to this repository, which would stand before a slot's own packages."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


class Updated:
    """A device that runs from slots."""

    def __init__(self, folder: Path, bundle: Bundle, port: int) -> None:
        self.root, self.log_file = folder / "update", folder / "launcher.log"
        self.config = write_edge(folder, "pi", port, 1, connect_timeout_s=5)
        self.store = Store(folder / "covey-state")
        shutil.copytree(bundle.path, self.store.bundles / bundle.sha256)
        self.store.write_journal(Journal(bundle_sha256=bundle.sha256))
        (folder / "wheels").mkdir()
        self.wheel = build_wheel(folder / "wheels")
        done = self.edge([sys.executable, "-m", "edge_runtime.cli"], "setup", str(self.wheel), "--config")
        assert done["version"] == "0.1.0"
        self.launcher: subprocess.Popen[bytes] | None = None

    def edge(self, command: list[str], *arguments: str, code: int = 0) -> dict[str, Any]:
        flags = [str(self.config)] if arguments[-1] == "--config" else []
        command = [*command, "update", *arguments, *flags, "--root", str(self.root), "--format", "json"]
        environment = None if command[0] == sys.executable else bare()
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, env=environment)
        assert done.returncode == code, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def update(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run ``covey-edge update`` of the current version."""
        return self.edge([str(self.root / "current" / "bin" / "covey-edge")], *arguments, code=code)

    def install(self, wheel: Path, *flags: str, code: int = 0) -> dict[str, Any]:
        return self.update("install", str(wheel), *flags, "--config", code=code)

    def start(self) -> None:
        command = [sys.executable, "-I", str(self.root / "launcher.pyz"), "--config", str(self.config)]
        command += ["--health-timeout", "20", "--probation", "2"]
        with self.log_file.open("ab") as log:
            self.launcher = subprocess.Popen(command, stdout=log, stderr=log, env=bare())

    def ended(self, version: str) -> tuple[str, str]:
        """Wait until the switch to a version has ended; return how, and why."""

        def outcome() -> tuple[str, str] | None:
            found = last_outcome(self.root)
            if found is None or found.to_version != version or found.result == "on-trial":
                return None
            return found.result, found.reason

        found: tuple[str, str] = wait_for(outcome, f"end of the switch to {version}", 120)
        return found

    def runs(self, version: str, count: int = 1) -> None:
        """Wait until the device's log says for the n-th time that a version begins."""
        words = f"begins: Covey {version},"
        wait_for(lambda: self.log().count(words) >= count, f"Covey {version}", 120)

    def log(self) -> str:
        """Return the device's public log."""
        path = self.store.root / "log.jsonl"
        return path.read_text() if path.exists() else ""


def version_of(environment: Path) -> str:
    command = [environment / "bin" / "covey-edge", "--version"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=bare()).stdout


@pytest.fixture
def device(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Updated]:
    with mosquitto(tmp_path / "broker") as port:
        made = Updated(tmp_path, tiny_bundle, port)
        yield made
        if made.launcher is not None:
            made.launcher.terminate()
            made.launcher.wait(60)


def test_good_and_bad_wheels_on_a_device_that_runs(device: Updated) -> None:
    device.start()
    device.runs("0.1.0")
    good = changed_wheel(device.wheel, "0.2.0")
    answer = device.install(good)
    assert answer["version"] == "0.2.0"
    assert device.ended("0.2.0") == ("accepted", "")
    device.runs("0.2.0")
    assert version_of(device.root / "current") == "covey-edge 0.2.0\n"
    assert device.update("status")["previous"]["version"] == "0.1.0"

    device.update("rollback")
    assert device.ended("0.1.0") == ("accepted", "")
    device.update("rollback")  # the way back from the way back
    assert device.ended("0.2.0") == ("accepted", "")

    crashes = changed_wheel(device.wheel, "0.3.0", {RUN: (START, "    raise RuntimeError('broken on purpose')\n")})
    device.install(crashes)
    result, reason = device.ended("0.3.0")
    assert result == "rolled-back"
    assert reason == "it ended by itself with exit code 70: this is a fault of Covey (RuntimeError)"
    device.runs("0.2.0", 3)
    assert "rolled-back, because it ended by itself with exit code 70" in device.log()

    hangs = changed_wheel(device.wheel, "0.4.0", {RUN: (START, "    time.sleep(600)\n" + START)})
    device.install(hangs)
    assert device.ended("0.4.0") == ("rolled-back", "it did not begin to serve in 20 s")
    port = free_port()
    deaf = changed_wheel(
        device.wheel, "0.5.0", {RUN: ("parse_broker(config.broker),", f"parse_broker('mqtt://127.0.0.1:{port}'),")}
    )
    device.install(deaf)
    result, reason = device.ended("0.5.0")
    assert result == "rolled-back"
    assert reason.startswith("it does not reach the broker, and the version before does: no connection to the broker")
    device.runs("0.2.0", 5)


def test_what_does_not_work_here_is_refused_before_it_runs(device: Updated) -> None:
    def refused(version: str, *flags: str, **changes: Any) -> str:
        answer = device.install(changed_wheel(device.wheel, version, **changes), *flags, code=3)
        assert list(installed(device.root)) == ["a"]
        return f"{answer['error']}\n{answer['hint']}"

    broken = refused("0.2.0", edits={"edge_runtime/agent/agent.py": ("import logging\n", "import loging\n")})
    assert "edge_runtime.agent.agent does not load: No module named 'loging'" in broken
    raises = 'def check_golden(*_: object) -> object:\n    raise BundleError("not the values of PyTorch", "")\n\n\n'
    golden = ("def check_golden(", f"{raises}def check_golden_before(")
    untrue = refused("0.3.0", edits={"edge_runtime/engines/golden.py": golden})
    assert "does not work on this device: not the values of PyTorch" in untrue
    renamed = ("    bundle_sha256: Sha256 | None", "    bundel: Sha256 | None")
    blind = refused("0.4.0", edits={"edge_runtime/store/journal.py": renamed})
    assert "the journal" in blind
    needs = refused("0.5.0", requires="numpy>=99")
    assert "numpy>=99" in needs
    assert "--wheelhouse DIR" in needs
    device.install(device.wheel, "--sha256", "0" * 64, code=3)


@pytest.mark.parametrize("seed", range(int(os.environ.get("COVEY_KILL_RUNS", "1"))))
def test_an_installation_killed_at_random_leaves_the_version_that_runs(device: Updated, seed: int) -> None:
    rng = random.Random(seed)
    wheel = changed_wheel(device.wheel, "0.2.0")
    command = [str(device.root / "current" / "bin" / "covey-edge"), "update", "install", str(wheel), "--no-switch"]
    for _ in range(6):
        popen = subprocess.Popen(
            [*command, "--root", str(device.root), "--config", str(device.config)],
            stderr=subprocess.DEVNULL,
            env=bare(),
        )
        try:
            popen.wait(rng.random() * 6)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()
        there = installed(device.root)
        assert there["a"].version == "0.1.0", seed
        if "b" in there:
            assert version_of(device.root / "env-b") == "covey-edge 0.2.0\n", seed
    device.start()
    device.runs("0.1.0")
    with pytest.raises(UpdateError, match="is wanted"):
        install_in_process(wheel, "0" * 64, device.root, device.config)
    request_switch(device.root, install_in_process(wheel, file_sha256(wheel), device.root, device.config))
    assert device.ended("0.2.0") == ("accepted", "")
