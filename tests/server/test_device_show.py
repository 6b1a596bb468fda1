"""``covey device show``: what the dashboard's page has, as text and JSON, from a server and from the ledger alone."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import FORWARD_ONLY, birth_of
from litestar import Litestar
from litestar.testing import TestClient
from operator_sites import site

from edge_runtime.protocol.held_out import HeldOut
from server.cli import main
from server.dashboard.app import make_dashboard
from server.errors import NoSuchDeviceError
from server.simulation.presence import FLEET
from server.simulation.run import SimulateOptions, simulate
from server.storage.device_queries import devices_of
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.trust_records import CertificateRecord
from server.views.device import device_shown, device_text

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = {"{name}: replayed": 2, "another: unsigned": 7}


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's state after a simulated job with a bandit; a device has certificates, a release, and has fallen."""
    folder: Path = tmp_path_factory.mktemp("shown")
    simulate(SimulateOptions(devices=12, rounds=4, cohort=6, drop_out=0.0), state_dir=folder)
    ledger = Ledger(folder / LEDGER_FILE)
    name = device_of(ledger)
    birth = next(known.birth for known in devices_of(ledger) if known.device == name)
    fallen = birth | {"held_out": msgspec.to_builtins(HeldOut(0.5, 40, 0.75, has_fallen=True)), "predicts": True}
    ledger.device_born(FLEET, name, json.dumps(fallen))
    ledger.tag_device(FLEET, name, "kitchen")
    for serial, expires_at_s in (("a" * 40, 1_900_000_000), ("b" * 40, 1_900_000_001)):
        ledger.certificate_issued(CertificateRecord(serial, FLEET, name, "c" * 64, "PEM", expires_at_s))
    ledger.revoke_serial("a" * 40, "it was lost")
    document = {"kind": "wheel", "sha256": "d" * 64, "devices": {name: {"state": "failed", "reason": "too old"}}}
    ledger.rollout_entered(FLEET, "/x.whl", "running", json.dumps(document))
    ledger.rollout_entered(FLEET, "/y.whl", "running", json.dumps({**document, "devices": {}}))
    ledger.close()
    return folder


def device_of(ledger: Ledger) -> str:
    """Return the device with the most reports."""
    return max(devices_of(ledger), key=lambda known: known.reports).device


@pytest.fixture
def ledger(state_dir: Path) -> Ledger:
    return Ledger(state_dir / LEDGER_FILE, read_only=True)


def test_all_that_is_known_is_there_and_the_page_shows_the_same(ledger: Ledger) -> None:
    name = device_of(ledger)
    refused = {key.format(name=name): count for key, count in REFUSED.items()}
    shown = device_shown(ledger, FLEET, name, refused)
    known = next(known for known in devices_of(ledger) if known.device == name)
    assert shown["reports"] == known.reports == len([o for o in shown["offer_list"] if o["state"] == "reported"])
    assert shown["mean_seconds"] == pytest.approx(known.mean_seconds)
    assert shown["tags"] == ["kitchen"]
    assert shown["refused"] == {"replayed": 2}
    assert [(one["serial"][0], one["reason"]) for one in shown["certificates"]] == [("b", None), ("a", "it was lost")]
    assert [(one["rollout"], one["state"], one["reason"]) for one in shown["releases"]] == [(1, "failed", "too old")]
    assert shown["profile"] is not None
    rounds = [(offer["job"], offer["round"]) for offer in shown["offer_list"]]
    assert rounds == sorted(rounds, key=lambda one: -one[1])
    assert any(offer["arm"] for offer in shown["offer_list"])
    assert shown["arm"] is None or shown["arm"] == shown["offer_list"][0]["arm"]

    operations: Any = SimpleNamespace(
        ledger=ledger, fleet=FLEET, log_lines=lambda _name, _after: [], supervisor=None, rollouts=None, trust=None
    )
    with TestClient(Litestar(make_dashboard(operations, "/api/v1", lambda: refused), logging_config=None)) as client:
        page = client.get(f"/ui/devices/{name}").text
    text = device_text(shown)
    for found in ("b" * 40, "it was lost", "too old", "0.500, fallen from 0.750", "kitchen", "replayed: 2"):
        assert found in page
        assert found in text
    for offer in shown["offer_list"]:
        assert (offer["arm"] or "") in page
    assert "unsigned" not in text


def test_a_device_without_anything_has_dashes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_FILE)
    ledger.device_state("default", "pi", "lost", None)
    shown = device_shown(ledger, "default", "pi")
    assert {shown[key] for key in ("profile", "held_out", "predicts", "refused", "mean_seconds", "board", "arm")} == {
        None
    }
    text = device_text(shown)
    assert "pi of fleet default" in text
    assert "None" not in text
    for heading in ("Rounds", "Certificates", "Releases", "Profile", "refused"):
        assert heading not in text
    with pytest.raises(NoSuchDeviceError):
        device_shown(ledger, "default", "nobody")


def test_the_command_reads_the_ledger_where_no_server_runs(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = device_of(Ledger(state_dir / LEDGER_FILE, read_only=True))
    command = ["device", "show", name, "--state-dir", str(state_dir)]
    assert main([*command, "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == name
    assert shown["profile"]["graphs"]
    assert shown["refused"] is None
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "0.500, fallen from 0.750" in text
    assert "it was lost" in text
    assert main(["device", "show", "nobody", "--state-dir", str(state_dir)]) == 3
    assert "in no fleet" in capsys.readouterr().err


def test_a_server_answers_the_same_and_says_what_is_not_there(tmp_path: Path) -> None:
    with site(tmp_path) as server, server.command() as client:
        birth = birth_of("pi", FORWARD_ONLY, rows=12)
        server.ledger.device_born("default", "pi", msgspec.json.encode(birth).decode())
        answer = client.get("/devices/pi")
        assert answer.status_code == 200, answer.text
        expected = msgspec.to_builtins(device_shown(server.ledger, "default", "pi", {}))
        assert answer.json() == json.loads(msgspec.json.encode(expected))
        assert (answer.json()["rows"], answer.json()["refused"]) == (12, {})
        nobody = client.get("/devices/nobody")
        assert (nobody.status_code, nobody.json()["exit_code"]) == (404, 3)
