"""``covey-edge profile`` with a real broker and a real server: published, stored, imported."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import Fleet, free_port, has_mosquitto, mosquitto, wait_for, write_edge, write_job

from edge_runtime import cli as edge_cli
from edge_runtime.protocol.profile_check import decode_profile
from server.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

pytestmark = pytest.mark.timeout(900)


NEEDS_MOSQUITTO = pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
MOSQUITTO = pytest.param("mosquitto", marks=[pytest.mark.slow, pytest.mark.mosquitto, NEEDS_MOSQUITTO])


@pytest.fixture(params=["embedded", MOSQUITTO])
def fleet(request: pytest.FixtureRequest, tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        external = request.param == "mosquitto"
        port = stack.enter_context(mosquitto(tmp_path / "mosquitto")) if external else free_port()
        made = Fleet(tmp_path, tiny_bundle, port, external=external)
        stack.callback(made.stop)
        yield made


def test_a_device_measures_itself_and_the_server_keeps_it(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    http_port = free_port()
    job = write_job(fleet.root, rounds=1, min_devices=2)
    broker = ["--broker", f"mqtt://127.0.0.1:{fleet.port}"] if fleet.external else ["--mqtt-port", str(fleet.port)]
    server = fleet.serve(job, *broker, "--http-port", str(http_port))
    server.wait_event("waiting")
    config = write_edge(fleet.root / "pi", "pi", fleet.port, 1, server_url=f"http://127.0.0.1:{http_port}")
    measure = [
        "profile",
        "--config",
        str(config),
        "--bundle",
        str(fleet.bundle.path),
        "--seconds",
        "0.01",
        "--shapes",
        "1x8",
        "--sustain",
        "0.2s",
        "--board",
        "my-board",
        "--format",
        "json",
    ]
    assert edge_cli.main(measure) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["published"] is True
    kept = decode_profile((fleet.root / "pi/covey-state/profile.json").read_bytes())
    assert answer["profile"] == msgspec.to_builtins(kept)
    assert all(rate is not None and rate > 0 for rate in answer["profile"]["rates"].values())
    predict = kept.graph("predict")
    assert predict is not None
    assert predict.sustained is not None
    assert predict.sustained.count >= 1
    assert predict.sustained.seconds >= 0.2

    def covey(*words: str) -> Any:
        code = main(
            [
                "profile",
                *words,
                "--state-dir",
                str(fleet.state_dir),
                "--format",
                "json",
                "--dir",
                str(fleet.root / "profiles"),
            ]
        )
        out = json.loads(capsys.readouterr().out)
        return out if code == 0 else None

    rows = wait_for(lambda: covey("history", "pi"), "profile in the ledger")["profiles"]
    assert [(row["state"], row["source"], row["board"]) for row in rows] == [("valid", "measured", "my-board")]
    imported = covey("import", "pi")
    assert Path(imported["path"]) == fleet.root / "profiles/my-board/latency.json"
    assert decode_profile(Path(imported["path"]).read_bytes()).graphs == kept.graphs


def test_without_a_broker_the_profile_is_kept(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_edge(tmp_path / "pi", "pi", free_port(), 1, connect_timeout_s=0.1)
    measure = [
        "profile",
        "--config",
        str(config),
        "--bundle",
        str(tiny_bundle.path),
        "--seconds",
        "0.01",
        "--shapes",
        "1x8",
        "--format",
        "json",
    ]
    assert edge_cli.main(measure) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["published"] is False
    rates = decode_profile((tmp_path / "pi/covey-state/profile.json").read_bytes()).rates
    assert (rates.link_down_bytes_per_s, rates.link_up_bytes_per_s) == (None, None)
    assert (rates.replay_parameters_per_s or 0) > 0
