"""``covey simulate``: the same seed gives the same bits, and the ledger explains every choice afterwards."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from fleets import write_job
from tiny_models import reviews, write_rows

from edge_runtime.errors import ConfigError, DataError, ProfileError
from edge_runtime.protocol.profile_check import encode_profile
from server.cli import main
from server.errors import JobError
from server.fleet.cohort import longest_wait
from server.job.fitted import FittedJob
from server.job.job import Job
from server.planning.bandit_assigner import BanditAssigner
from server.planning.planner import Planner
from server.profiles.files import read_profile
from server.simulation.boards import modelled_profiles
from server.simulation.bowl import Bowl
from server.simulation.run import JOB_NAME, SimulateOptions, simulate
from server.simulation.task import LEAST_ROWS, BundleTask
from server.simulation.traces import TraceEvent, read_traces, throttling
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

SMALL = SimulateOptions(devices=12, rounds=6, cohort=6, drop_out=0.1)


def run(**changes: Any) -> dict[str, Any]:
    fields = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    result = simulate(SimulateOptions(**fields | changes))
    assert result is not None
    return {key: value for key, value in result.items() if key not in ("wall_s", "cpu_s", "peak_rss_mb")}


def test_a_seed_says_it_all_and_the_fleet_learns() -> None:
    first = run()
    assert run() == first
    assert run(seed=1)["adapter_sha256"] != first["adapter_sha256"]
    assert first["rounds"] == 6
    assert first["loss_end"] < 0.8 * first["loss_start"]
    assert first["longest_wait_rounds"] <= longest_wait(12, 8)


@pytest.mark.parametrize("policy", [None, "paper", "fixed"])
def test_other_policies_run_too(policy: Any) -> None:
    assert run(policy=policy, rounds=3)["loss_end"] is not None


def test_a_trace_slows_the_fleet_down() -> None:
    hot = (TraceEvent(0.0, "*", slowdown=5.0),)
    quiet = {"drop_out": 0.0, "throttle": 0.0, "policy": "fixed"}
    assert run(traces=hot, **quiet)["virtual_s"] > 2 * run(**quiet)["virtual_s"]


def test_a_frozen_front_is_paid_for_once(tmp_path: Path) -> None:
    """Simulated devices keep activations as real ones do: the same job takes less time, and the back still learns."""
    found = {}
    for front in ("train", "frozen"):
        (tmp_path / front).mkdir()
        job = write_job(tmp_path / front, front=front, steps=4, batch_size=8, bandit={"policy": "thompson"})
        found[front] = run(job=job)
    assert found["frozen"]["virtual_s"] < 0.85 * found["train"]["virtual_s"]
    assert found["frozen"]["loss_end"] < found["frozen"]["loss_start"]


def test_everybody_gone_fails_the_job_with_a_reason() -> None:
    gone = (TraceEvent(5.0, "*", here=False), TraceEvent(5_000.0, "*", here=True))
    assert run(traces=gone, drop_out=0.0)["virtual_s"] > 5_000


def test_every_choice_can_be_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(SMALL, state_dir=tmp_path) is not None
    offers = queries.offers_of(Ledger(tmp_path / LEDGER_FILE, read_only=True), JOB_NAME)
    assert offers
    for offer in offers:
        arguments = ["job", "explain", str(offer.index), offer.device, "--state-dir", str(tmp_path)]
        assert main([*arguments, "--format", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        if offer.level is not None:
            assert found["arm"] == f"level {offer.level}"
        assert found["arm"] in {arm["arm"] for arm in found["arms"]}
        assert found["why"]
    assert main(arguments) == 0
    assert "score" in capsys.readouterr().out
    assert main(["job", "explain", "99", offers[0].device, "--state-dir", str(tmp_path)]) == JobError.exit_code
    assert "made no choice" in capsys.readouterr().err


def test_what_was_learned_is_there_after_a_restart(tmp_path: Path) -> None:
    assert simulate(SMALL, state_dir=tmp_path) is not None
    ledger = Ledger(tmp_path / LEDGER_FILE)
    entered = queries.find_job(ledger, JOB_NAME)
    assert entered is not None
    job = msgspec.convert(entered.config, Job)
    bowl = Bowl(12, [8], [2, 4, 6, 9, 12], 1, np.random.Generator(np.random.PCG64(0)))
    planner = Planner(FittedJob.unchecked(job, bowl.manifest, bowl.sha256), ledger)
    assert isinstance(planner.assigner, BanditAssigner)
    assert planner.assigner.state.gains.seen == 6
    assert set(planner.assigner.state.times) == {
        offer.device for offer in queries.offers_of(ledger, JOB_NAME) if offer.state == "reported"
    }


def test_a_folder_that_has_a_ledger_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(b"")
    with pytest.raises(ConfigError, match="ledger already"):
        simulate(SMALL, state_dir=tmp_path)


def test_profiles_come_from_files(tmp_path: Path) -> None:
    paths = []
    for index, profile in enumerate(modelled_profiles()):
        paths.append(tmp_path / f"{index}.json")
        paths[-1].write_bytes(encode_profile(profile))
    assert [read_profile(path) for path in paths] == modelled_profiles()
    assert run(profiles=tuple(paths), rounds=2) == run(rounds=2)


@pytest.mark.parametrize("time", ["-1.0", "0", "NaN", '"fast"'])
def test_times_that_cannot_be_are_refused(tmp_path: Path, time: str) -> None:
    path = tmp_path / "latency.json"
    text = encode_profile(modelled_profiles()[0]).decode()
    entry = msgspec.json.decode(text)["graphs"][0]["latencies"][0]["median_s"]
    path.write_text(text.replace(f'"median_s": {entry}', f'"median_s": {time}', 1))
    with pytest.raises(ProfileError):
        read_profile(path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--devices", "0"], "--devices"),
        (["--drop-out", "1.5"], "--drop-out"),
        (["--over-selection", "nan"], "--over-selection"),
        (["--profiles", "nowhere.json"], "nowhere.json"),
        (["--traces", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_options_are_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *flags]) == ConfigError.exit_code
    assert message in capsys.readouterr().err


def test_a_broken_trace_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at_s": 1, "device": "*", "slowdown": 2}\n\n{"at_s": -1, "device": "*"}\n')
    with pytest.raises(ConfigError, match="line 3"):
        read_traces(path)


@pytest.mark.timeout(300)
def test_a_real_model_learns_and_a_seed_says_it_all(
    tmp_path: Path, tiny_export: Callable[..., Bundle], capsys: pytest.CaptureFixture[str]
) -> None:
    """Real steps of both kinds on a tiny BERT's bundle."""
    bundle, data = tiny_export("bert", levels=(1, 2, 3)), write_rows(reviews(120, 1), tmp_path / "rows.jsonl")
    options = {"levels": [2, 3], "steps": 4, "learning_rate": 0.01}
    job = write_job(tmp_path, {"learning_rate": 0.01}, schedule="constant", stld=options)
    real = {
        "bundle": bundle.path,
        "data": data,
        "job": job,
        "devices": 6,
        "cohort": 6,
        "rounds": 6,
        "over_selection": 1.0,
    }
    first = run(**real)
    assert run(**real) == first
    assert run(**real, seed=1)["adapter_sha256"] != first["adapter_sha256"]
    assert first["loss_end"] < first["loss_start"]
    assert 0 <= first["accuracy_end"] <= 1
    assert {"forward"} < set(first["arms"]) <= {"forward", "level 2", "level 3"}
    few = write_rows(reviews(10, 1), tmp_path / "few.jsonl")
    arguments = ["simulate", "--bundle", str(bundle.path), "--job", str(job), "--devices", "2", "--rounds", "1"]
    assert main([*arguments, "--data", str(few)]) == DataError.exit_code
    assert "10 rows: too few" in capsys.readouterr().err
    assert main(arguments) == ConfigError.exit_code
    boards = tmp_path / "latency.json"
    boards.write_bytes(encode_profile(modelled_profiles()[0]))
    assert main([*arguments, "--data", str(data), "--profiles", str(boards)]) == ConfigError.exit_code
    assert "the profiles have 12" in capsys.readouterr().err


def test_devices_share_rows_only_where_there_are_too_few(tmp_path: Path, tiny_bundle: Bundle) -> None:
    data, chance = write_rows(reviews(100, 1), tmp_path / "rows.jsonl"), np.random.Generator(np.random.PCG64(0))
    few, many = (BundleTask(tiny_bundle, data, devices, chance) for devices in (4, 50))
    assert [len(few.rows(device)) for device in range(4)] == [20] * 4
    assert len({index for device in range(4) for index in few.row_numbers(device)}) == 80
    assert {len(many.row_numbers(device)) for device in range(50)} == {LEAST_ROWS}


def test_drop_out_drift_and_throttling_show_in_the_times() -> None:
    """Each alone changes the times of a quiet fleet; the same seed draws the same."""
    calm: dict[str, Any] = {
        "drop_out": 0.0,
        "drift": 0.0,
        "throttle": 0.0,
        "jitter": 0.0,
        "rounds": 8,
        "policy": "fixed",
    }
    quiet = run(**calm)
    assert run(**calm | {"drift": 0.5})["virtual_s"] != quiet["virtual_s"]
    assert run(**calm | {"throttle": 1.0})["virtual_s"] > quiet["virtual_s"]
    leaving = run(**calm | {"drop_out": 0.3})
    assert leaving["reports"] < leaving["offers"]
    assert quiet["reports"] >= leaving["reports"]
    assert run(**calm | {"drop_out": 0.3}) == leaving


def test_a_heat_trace_ends_as_it_began() -> None:
    chance = np.random.Generator(np.random.PCG64(0))
    names = [f"device-{index}" for index in range(200)]
    events = throttling(names, 0.25, 1000.0, chance)
    assert 30 <= len(events) / 2 <= 70
    for hot, cool in zip(events[::2], events[1::2], strict=True):
        assert (hot.device, cool.slowdown) == (cool.device, 1.0)
        assert 1.5 <= (hot.slowdown or 0) <= 3.0
        assert 0 <= hot.at_s <= 750
        assert cool.at_s - hot.at_s == pytest.approx(250)
    assert throttling(names, 0.0, 1000.0, chance) == []


def test_the_policy_answers_to_heat_and_a_liar_is_found_out() -> None:
    """A board that claims 100 times its speed reports what it took: no round waits for it at a depth it cannot do."""
    calm: dict[str, Any] = {"drop_out": 0.0, "throttle": 0.0, "rounds": 12, "devices": 6, "cohort": 6}
    liar = (TraceEvent(0.0, "class-fast-0", slowdown=100.0),)
    honest, lied = run(**calm), run(**calm, traces=liar)
    fixed = run(**calm, traces=liar, policy="fixed")
    assert honest["virtual_s"] < lied["virtual_s"] < 0.5 * fixed["virtual_s"]
