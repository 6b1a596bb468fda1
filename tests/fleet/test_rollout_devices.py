"""A device takes releases: switched by one rename after every check, back by one command, and killed at any point."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from bench import Bench, bench_of, drain
from tiny_models import reviews, write_rows

from edge_runtime import errors
from edge_runtime.agent.config import UpdateRules
from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.cli import main
from edge_runtime.network.in_process import InProcessTransport
from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.side_messages import Release, Released
from edge_runtime.store.store import Store
from edge_runtime.store.versions import Version, in_use, read_versions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.agent.agent import Agent
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector


class Device:
    """One device on a bench, and the server's end of its topics."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.numbers = bench, iter(range(1, 100))
        self.server: InProcessTransport = bench.hub.join()
        self.server.subscribe(bench.topic("released"))
        self.agent: Agent = bench.agent()

    def release(self, theta: FloatVector | None, **changes: Any) -> Release:
        """Return a release of an adapter that the bench serves, or (None) of the bench's bundle."""
        blob = None if theta is None else self.bench.blobs.add(theta.astype("<f4").tobytes())
        bundle = self.bench.bundle
        release = Release(
            rollout=next(self.numbers),
            kind="bundle" if blob is None else "adapter",
            step="switch",
            sha256=bundle.sha256 if blob is None else blob.sha256,
            size_bytes=1 if blob is None else blob.size_bytes,
            bundle_sha256=None if blob is None else bundle.sha256,
            blob_url=self.bench.url,
            file_name=None,
        )
        return msgspec.structs.replace(release, **changes)

    def take(self, release: Release) -> list[Released]:
        """Send a release; return what the device says to it."""
        self.said()
        self.server.publish(self.bench.topic("release"), encode_message(release))
        for _ in range(6):
            self.agent.serve_waiting()
        return self.said()

    def said(self) -> list[Released]:
        found = []
        while (event := self.server.receive(0)) is not None:
            if hasattr(event, "payload"):
                found.append(decode_message(event.payload, Released))
        return found

    def outcome(self, release: Release) -> Released:
        return self.take(release)[-1]

    def current(self) -> Version | None:
        return read_versions(self.bench.store).current


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


@pytest.fixture
def theta(tiny_bundle: Bundle) -> FloatVector:
    initial = tiny_bundle.initial_adapter()
    return (initial + np.random.default_rng(1).normal(0, 0.3, initial.size)).astype(np.float32)


def test_an_adapter_is_switched_to_and_back(bench: Bench, theta: FloatVector) -> None:
    device = Device(bench)
    first, second = device.release(theta), device.release(theta + np.float32(0.01))
    assert [said.outcome for said in device.take(first)] == ["fetching", "switched"]
    assert [said.outcome for said in device.take(first)] == ["switched"]  # asked again, it says it again
    assert device.outcome(second).outcome == "switched"
    assert device.current() == Version(bench.bundle.sha256, second.sha256, second.rollout)
    used = in_use(bench.store)
    assert used is not None
    assert used[1] is not None
    assert used[1].stem == second.sha256
    back = msgspec.structs.replace(second, step="back")
    assert device.outcome(back).outcome == "rolled-back"
    assert device.current() == Version(bench.bundle.sha256, first.sha256, first.rollout)
    assert device.outcome(msgspec.structs.replace(back, rollout=77)).outcome == "rolled-back"  # it was never on 77
    assert device.current() == Version(bench.bundle.sha256, first.sha256, first.rollout)
    device.agent = bench.agent()  # a restart: the server learns the outcome again
    for _ in range(3):
        device.agent.serve_waiting()
    assert [said.outcome for said in device.said()][-1:] == ["rolled-back"]


def test_a_bundle_is_switched_to_and_predict_uses_what_is_in_use(
    bench: Bench, theta: FloatVector, capsys: pytest.CaptureFixture[str]
) -> None:
    config = bench.root / "edge.toml"
    config.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')

    def covey_edge(*words: str, code: int = 0) -> dict[str, Any]:
        assert main([*words, "--config", str(config), "--format", "json"]) == code
        shown = capsys.readouterr()
        answer: dict[str, Any] = json.loads((shown.out or shown.err).splitlines()[-1])
        return answer

    assert "no adapter yet" in covey_edge("predict", "a text", code=3)["error"]
    assert "no version was rolled out" in covey_edge("version", "rollback", code=3)["error"]
    device = Device(bench)
    bundle, adapter = device.release(None), device.release(theta * 3)
    assert device.outcome(bundle).outcome == "switched"
    before = covey_edge("predict", "a text")["predictions"]
    assert device.outcome(adapter).outcome == "switched"
    after = covey_edge("predict", "a text")["predictions"]
    assert after != before
    assert covey_edge("version", "show")["current"]["adapter_sha256"] == adapter.sha256
    assert covey_edge("version", "rollback")["current"]["adapter_sha256"] is None
    assert covey_edge("predict", "a text")["predictions"] == before
    assert covey_edge("version", "rollback")["current"]["adapter_sha256"] == adapter.sha256
    assert "no adapter yet" in covey_edge("predict", "a text", "--trained", code=3)["error"]


BAD = ["altered", "not finite", "too short", "no such blob's bundle", "infinite outputs", "a wheel"]


@pytest.mark.parametrize("kind", BAD)
def test_what_is_bad_changes_nothing_and_is_said(bench: Bench, theta: FloatVector, kind: str) -> None:
    device = Device(bench)
    good = device.release(theta)
    assert device.outcome(good).outcome == "switched"
    if kind == "altered":
        bad = device.release(theta + np.float32(1))
        path = bench.blobs.path(bad.sha256)
        assert path is not None
        path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    elif kind == "not finite":
        bad = device.release(np.where(np.arange(theta.size) == 3, np.float32(np.nan), theta))
    elif kind == "too short":
        bad = device.release(theta[:-1])
    elif kind == "infinite outputs":
        bad = device.release(np.sign(theta) * np.float32(1e38))
    elif kind == "a wheel":
        bad = device.release(theta, kind="wheel", bundle_sha256=None, file_name="covey-1-py3-none-any.whl")
    else:
        bad = device.release(theta, bundle_sha256="cd" * 32)
    device.agent._releases._pause = lambda _seconds: None  # between attempts to fetch
    said = device.outcome(bad)
    assert said.rollout == bad.rollout
    assert said.outcome in ("failed", "fetching")
    assert said.code != 0
    assert said.reason
    assert device.current() == Version(bench.bundle.sha256, good.sha256, good.rollout)


def test_a_loss_of_accuracy_on_own_rows_is_refused_and_no_row_is_quoted(
    bench: Bench, theta: FloatVector, tiny_bundle: Bundle
) -> None:
    own = bench.root / "own.jsonl"
    write_rows(reviews(12, 5), own)
    bench.config = msgspec.structs.replace(bench.config, updates=UpdateRules(str(own), 0.02))
    device = Device(bench)
    first = device.release(theta)
    assert device.outcome(first).outcome == "switched"
    from edge_runtime.data.examples import DataConfig
    from edge_runtime.engines.choose import ONNX_RUNTIME
    from edge_runtime.engines.examine import examine

    folder = bench.root / "adapters"
    folder.mkdir()
    rng = np.random.default_rng(0)
    found: dict[float, FloatVector] = {}
    for _ in range(12):  # adapters that are right more and less often
        tried = (theta + rng.normal(0, 1.0, theta.size)).astype(np.float32)
        (folder / "tried.bin").write_bytes(tried.astype("<f4").tobytes())
        data = DataConfig(str(own))
        accuracy = examine(tiny_bundle, folder / "tried.bin", data, ONNX_RUNTIME, contained=False).accuracy
        assert accuracy is not None
        found[accuracy] = tried
    best, worst = found[max(found)], found[min(found)]
    assert max(found) > min(found) + 0.02
    bench.config = msgspec.structs.replace(bench.config, updates=UpdateRules(str(own), 1.0))
    device.agent = bench.agent()
    better = device.release(best)
    assert device.outcome(better).outcome == "switched"
    bench.config = msgspec.structs.replace(bench.config, updates=UpdateRules(str(own), 0.02))
    device.agent = bench.agent()
    said = device.outcome(device.release(worst))
    assert said.outcome == "failed"
    assert "accuracy on this device's own 12 rows falls" in said.reason
    assert device.current() == Version(bench.bundle.sha256, better.sha256, better.rollout)
    own.write_text('{"text": "very private", "label": "nonsense of mine"}\n')
    said = device.outcome(device.release(theta * np.float32(1.5)))
    assert said.outcome == "failed"
    assert "private" not in said.reason
    assert "nonsense" not in said.reason


def test_a_server_that_cannot_be_reached_is_no_failure(bench: Bench, theta: FloatVector) -> None:
    device = Device(bench)
    gone = device.release(theta, blob_url="http://127.0.0.1:9/blobs")
    releases = device.agent._releases
    releases._pause = lambda _seconds: None
    said = device.take(gone)
    assert [one.outcome for one in said] == ["fetching", "fetching"]
    assert said[-1].code == errors.NetworkError.exit_code
    releases._again_at = 0.0
    releases._waiting = msgspec.structs.replace(gone, blob_url=bench.url)  # the server is back
    device.agent.serve_waiting()
    assert device.said()[-1].outcome == "switched"


_KILLED = """
import os, sys
from pathlib import Path
import msgspec
from edge_runtime.agent.config import read_edge_config
from edge_runtime.agent.releases import Releases
from edge_runtime.network.in_process import Hub
from edge_runtime.protocol.messages import decode_message
from edge_runtime.protocol.side_messages import Release
from edge_runtime.store.store import Store

left = int(sys.argv[3])
def watch(event, arguments):
    global left
    if event in ("open", "os.rename", "os.remove", "os.mkdir") and "state" in str(arguments[0]):
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if writes:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
config = read_edge_config(Path(sys.argv[1]))
release = decode_message(Path(sys.argv[2]).read_bytes(), Release)
store = Store(Path(config.state_dir))
releases = Releases(config, store, Hub().join(), lambda _s: None, lambda: 0.0, contained=False)
sys.addaudithook(watch)
releases.take(release)
print("whole")
"""


def test_killed_at_every_write_the_old_or_the_new_version_is_in_use(bench: Bench, theta: FloatVector) -> None:
    device = Device(bench)
    first, second = device.release(theta), device.release(theta + np.float32(0.5))
    third = device.release(theta - np.float32(0.5))
    config = bench.root / "edge.toml"
    config.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')
    device.take(first)
    device.take(second)
    known = {first.sha256, second.sha256, third.sha256}
    message = bench.root / "release"
    message.write_bytes(encode_message(third))
    for kill in range(60):
        command = [sys.executable, "-c", _KILLED, str(config), str(message), str(kill)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
        used = in_use(Store(bench.root / "state"))
        assert used is not None
        assert used[1] is not None
        assert used[1].stem in known
        assert adapter_sha256(np.fromfile(used[1], "<f4")) == used[1].stem  # whole, and the one of its name
        before = read_versions(bench.store).previous
        assert before is not None
        assert before.adapter_sha256 is not None
        assert (bench.root / "state" / "released" / f"{before.adapter_sha256}.bin").is_file()
        if "whole" in done.stdout:
            break
        assert done.returncode == -9, done.stderr
    else:
        pytest.fail("it never came to its end")
    assert kill >= 4
    assert used[1].stem == third.sha256


def test_a_damaged_pointer_is_set_aside_and_said(bench: Bench, theta: FloatVector) -> None:
    device = Device(bench)
    device.take(device.release(theta))
    path = bench.root / "state" / "versions.json"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(errors.StorageError, match="is damaged"):
        read_versions(bench.store)
    again = device.release(theta * np.float32(2))
    assert device.outcome(again).outcome == "switched"
    assert path.with_name("versions.json.bad").is_file()
    drain(device.server)


class Launcher:
    """Stands for edge_runtime.update: keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def switch(self, wheel: Path, sha256: str) -> None:
        assert wheel.read_bytes() == b"a wheel"
        self.asked.append((wheel.name, sha256))

    def back(self, sha256: str) -> None:
        self.asked.append(("back", sha256))


def test_a_wheel_is_fetched_and_handed_on_and_nothing_that_is_not_released_is_fetched(
    bench: Bench, theta: FloatVector
) -> None:
    device, launcher = Device(bench), Launcher()
    device.agent._releases.covey = launcher
    device.agent._releases._require = lambda *_: True
    blob, name = bench.blobs.add(b"a wheel"), "covey-9-py3-none-any.whl"
    changes = {"kind": "wheel", "bundle_sha256": None, "sha256": blob.sha256, "size_bytes": 7, "file_name": name}
    wheel = device.release(None, **changes)
    assert device.outcome(wheel).outcome == "switched"
    assert device.outcome(msgspec.structs.replace(wheel, step="back")).outcome == "rolled-back"
    assert launcher.asked == [(name, blob.sha256), ("back", blob.sha256)]

    def refuse(kind: str, sha256: str, _fetcher: Any) -> bool:
        raise errors.BundleError(f"{kind} {sha256[:6]} is not released to this fleet")

    device.agent._releases._require = refuse
    for release in (device.release(theta), device.release(None, **changes)):
        said = device.outcome(release)
        assert (said.outcome, "is not released" in said.reason) == ("failed", True)
    assert device.current() is None
    assert len(launcher.asked) == 2
    assert not list((bench.root / "state" / "released").glob("*.bin"))


def test_a_device_without_release_keys_runs_nobodys_wheel(bench: Bench) -> None:
    """Whoever can publish on its broker could else have it run anything."""
    device, launcher = Device(bench), Launcher()
    device.agent._releases.covey = launcher
    blob = bench.blobs.add(b"a wheel")
    changes = {"kind": "wheel", "bundle_sha256": None, "sha256": blob.sha256, "size_bytes": 7}
    said = device.outcome(device.release(None, file_name="covey-9-py3-none-any.whl", **changes))
    assert (said.outcome, launcher.asked) == ("failed", [])
    assert "only where its fleet signs them" in said.reason
