"""covey advise --server: what a running server knows of its fleet gives the same advice as its ledger does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from operator_sites import ALICE, Site, site
from profiles import made_profile, payload_of
from tiny_models import reviews, write_rows

from edge_runtime.errors import ConfigError
from server.cli import main
from server.client.client import NoServerError
from server.profiles.received import ProfileStore
from server.storage.records import ClosedRound, RoundFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

FLEET = "default"
DEVICES = 450
"""More than two pages."""


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2, 3), levels=(1, 2, 3))


@pytest.fixture(scope="module")
def served(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("advise")
    with site(folder) as found:
        ledger = found.ledger
        for index in range(DEVICES):
            kind = "forward-only" if index % 2 else "backprop"
            birth = {"capability": {"kind": kind, "levels": None, "bytes_free": 1 << 33}}
            ledger.device_born(FLEET, f"pi-{index:03}", json.dumps(birth))
        store = ProfileStore(FLEET, ledger)
        store.manifests[bundle.sha256] = bundle.manifest
        store.take("pi-449", payload_of(msgspec.structs.replace(made_profile(bundle), device="pi-449"), "pi-449"))
        _job(found, "first", bundle.sha256)
        _job(found, "elsewhere", "c" * 64)
        yield found


def _job(served: Site, name: str, bundle_sha256: str) -> None:
    ledger = served.ledger
    ledger.submit_job(name, FLEET, bundle_sha256, "/nowhere", {"name": name, "eval_file": "/x", "rounds": 3})
    ledger.job_is(name, "stopped", None)
    for index, seconds in enumerate((2.0, 4.0)):
        ledger.open_round(name, index, 0, '{"split": 2, "rule": {}}', "a" * 64, None, {"pi-000": 3, "pi-449": None})
        for device in ("pi-000", "pi-449"):
            ledger.take_report(name, index, 0, device, {"examples": 5, "loss": 0.5, "seconds": seconds})
            ledger.offer_is(name, index, 0, device, "reported")
        figures = RoundFigures(2, None, None, None, None)
        ledger.close_round(name, 0, ClosedRound(index, "a" * 64, "b" * 64, None, None, 0, None, figures))
        ledger.round_evaluated(name, index, 0.5 - index / 10, 0.5 + index / 4)


@pytest.fixture
def command(bundle: Bundle, tmp_path: Path) -> list[str]:
    rows = write_rows(reviews(20, 1), tmp_path / "rows.jsonl")
    token = tmp_path / "token"
    token.write_text(ALICE)
    return ["advise", "--model", str(bundle.path), "--data", str(rows), "--token-file", str(token)]


def said(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict[str, Any]:
    code = main([*words, "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def test_a_running_server_gives_what_its_ledger_gives(
    served: Site, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(capsys, [*command, "--server", served.url])
    assert found == said(capsys, [*command, "--state-dir", str(served.operators.parent / "state")])
    assert [board["board"] for board in found["boards"]] == [f"pi-{index:03}" for index in range(DEVICES)]
    first, last = found["boards"][0], found["boards"][-1]
    assert (first["kind"], last["kind"]) == ("backprop", "forward-only")
    assert last["seconds"]["value"] is not None  # by the profile that it has published
    assert first["seconds"]["value"] is None
    assert first["done"] == [{"job": "first", "level": 3, "rounds": 2, "mean_seconds": 3.0}]
    assert last["done"] == [{"job": "first", "level": None, "rounds": 2, "mean_seconds": 3.0}]
    assert [(job["job"], job["rounds"], job["accuracy_end"]) for job in found["jobs"]] == [("first", 2, 0.75)]


def test_people_read_what_was_done_so_far(served: Site, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--server", served.url, "--profile", "pi-449"]) == 0
    text = capsys.readouterr().out
    assert "so far: job first with this bundle is stopped after 2 rounds" in text
    assert "so far       2 rounds of job first, forward passes alone, 3.00 s each on average" in text


def test_what_cannot_be_asked_is_refused_with_what_to_do(
    served: Site, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--server", served.url, "--fleet", "other"]) == ConfigError.exit_code
    assert "has the fleet default, not other" in capsys.readouterr().err
    assert main([*command, "--server", "http://127.0.0.1:9"]) == NoServerError.exit_code
    assert main([*command, "--server", served.url, "--token-file", str(tmp_path / "none")]) != 0
    with served.command() as client:
        for query in ({}, {"bundle_sha256": "x"}, {"bundle_sha256": "a" * 64, "most": 501}):
            assert client.get("/boards", params=query).status_code == 400
        page = client.get("/boards", params={"bundle_sha256": "a" * 64, "most": 2, "after": "pi-447"}).json()
        assert ([board["device"] for board in page["boards"]], page["next_after"]) == (["pi-448", "pi-449"], None)
    with served.browser() as stranger:
        assert stranger.get("/api/v1/boards").status_code == 401
