"""Levels of both kinds in the ledger, in simulations and in advice: they are named as the bundle names them."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
import pytest
from layered import with_levels
from profiles import made_profile
from tiny_models import reviews, write_rows

from edge_runtime.bundle.levels import Level, forward_passes
from edge_runtime.bundle.overview import overview
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from server.bandit.arms import PriceBasis, backprop_arms, price
from server.cli import main
from server.job.job import Job, JobStld, read_job
from server.simulation.boards import common, modelled_profiles
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.storage import queries
from server.storage.fleet_queries import offers_to_device
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

LEVELS: list[Level] = [2, "top:2", 4, "top:4"]


@pytest.mark.parametrize("level", [None, 1, 3, 4096, "top:1", "top:3", "top:4096"])
def test_the_ledger_gives_a_level_back_as_it_was_written(tmp_path: Path, level: Level | None) -> None:
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        ledger.submit_job("job", "default", "b" * 64, None, {"rounds": 1}, priority=0, after=None)
        ledger.begin_job("job", "default", "b" * 64, {"rounds": 1})
        plan = json.dumps({"split": 2, "rule": {}, "levels": {} if level is None else {"pi": level}})
        ledger.open_round("job", 0, 0, plan, "0" * 64, None, {"pi": level})
        assert [offer.level for offer in queries.offers_of(ledger, "job")] == [level]
        assert [offer.level for offer in offers_to_device(ledger, "default", "pi", 5)] == [level]
        attempt = queries.open_attempt(ledger, "job")
        assert attempt is not None
        assert attempt.plan.levels.get("pi") == level


def test_simulated_boards_train_at_both_kinds_of_levels(tmp_path: Path) -> None:
    profiles = modelled_profiles(6, [4], LEVELS)
    assert common(profiles) == (6, [4], LEVELS)
    times = [profiles[0].graph("train", level=level) for level in LEVELS]
    relative = [found.latencies[1].median_s / times[0].latencies[1].median_s for found in times if found and times[0]]
    assert relative == pytest.approx([forward_passes(level, 6) for level in LEVELS])
    paths = []
    for index, profile in enumerate(profiles):
        assert decode_profile(encode_profile(profile)) == profile
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_bytes(encode_profile(profile))
    options = SimulateOptions(devices=12, rounds=6, cohort=6, drop_out=0.0, profiles=tuple(paths))
    found = simulate(options, state_dir=tmp_path / "state")
    assert found is not None
    assert {"level top:2", "level top:4"} & set(found["arms"])
    assert found["loss_end"] < 0.9 * found["loss_start"]
    with closing(Ledger(tmp_path / "state" / LEDGER_FILE, read_only=True)) as ledger:
        for offer in queries.offers_of(ledger, JOB_NAME):
            assert offer.level is None or offer.level in LEVELS
            if isinstance(offer.level, str) and offer.layers is not None:
                assert set(offer.layers) <= set(range(6 - int(offer.level[-1]), 6))


def test_a_profile_prices_the_graph_of_the_level(tmp_path: Path, tiny_bundle: Bundle) -> None:
    bundle = with_levels(tiny_bundle, tmp_path / "bundle", [1, "top:1"])
    profile, basis = made_profile(bundle), PriceBasis(3, 8, 2, 8, Job("job", "rows").step, JobStld())
    graphs = [graph for graph in profile.graphs if graph.level is not None]
    slower = {"top:1": 2.0, 1: 1.0}
    for graph in graphs:
        assert graph.level is not None
        graph.latencies[:] = [
            type(x)(batch_size=x.batch_size, tokens=x.tokens, median_s=slower[graph.level]) for x in graph.latencies
        ]
    found = [price(arm, basis, profile).profile_s or 0.0 for arm in backprop_arms([1, "top:1"])]
    assert found[1] == pytest.approx(2 * found[0])


def test_the_level_is_shown_and_advised_with_its_kind(
    tmp_path: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = with_levels(tiny_bundle, tmp_path / "bundle", [1, "top:1", "top:3"])
    assert main(["bundle", "show", str(bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert "1 active layers; the last 1, 3 of all layers (top:1, top:3)" in shown
    assert "top:3" in shown
    assert overview(bundle)["levels"] == [1, "top:1", "top:3"]
    rows = write_rows(reviews(20, 1), tmp_path / "rows.jsonl")
    profile = tmp_path / "profile.json"
    profile.write_bytes(encode_profile(msgspec.structs.replace(made_profile(bundle), device=None)))
    flags = ["--data", str(rows), "--profile", str(profile), "--write", str(tmp_path / "job.toml")]
    assert main(["advise", "--model", str(bundle.path), *flags]) == 0
    said = capsys.readouterr().out
    assert "backprop at level top:3 (the last layers)" in said
    job = read_job(tmp_path / "job.toml")
    assert job.stld is not None
    assert job.stld.kinds == ["drop", "top"]
