"""covey advise: the figures have sources, hold against the stored runs, and what is unknown stays unknown."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import reviews, write_rows
from profiles import made_profile, payload_of

from edge_runtime.bundle.memory_need import bytes_for, level_need
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.profile_check import encode_profile
from server.advice.findings import BACKPROP_RUNS, FORWARD_RUNS, LOST_BY_LEVEL, ForwardRun
from server.cli import main
from server.profiles.received import ProfileStore
from server.serving.loaded_job import load_job
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PROFILES = str(Path(__file__).parents[2] / "device_profiles")
FIGURES = ("seconds", "bytes_up", "bytes_down", "memory_bytes", "board_memory")


def _kept(name: str) -> list[dict[str, Any]]:
    lines = (RESULTS / name).read_text().splitlines()
    return [run for run in map(json.loads, lines) if run.get("rows") == "test"]


def _mean(model: str, mode: str, name: str) -> tuple[list[dict[str, Any]], float, list[tuple[float, float]]]:
    kept = [run for run in _kept("convergence.jsonl") if "task" not in run]  # without one: the reviews
    runs = [run for run in kept if (run["model"], run["mode"], run["name"]) == (model, mode, name)]
    curves = zip(*(run["curve"] for run in runs), strict=True)
    mean = [(points[0][0], statistics.fmean(point[2] for point in points)) for points in curves]
    return runs, statistics.fmean(run["accuracy_end"] for run in runs), mean


def _first(curve: list[tuple[float, float]], accuracy: float) -> float:
    return next(forwards for forwards, reached in curve if reached >= accuracy - 1e-4)


@pytest.mark.parametrize("found", FORWARD_RUNS, ids=lambda found: f"{found.model}-{found.mode}-{found.name}")
def test_what_is_said_of_forward_only_runs_is_what_the_stored_runs_say(found: ForwardRun) -> None:
    runs, accuracy, curve = _mean(found.model, found.mode, found.name)
    job = runs[0]["job"]
    assert len(runs) == 3
    assert (job["rounds"], job["steps"], job["batch_size"]) == (found.rounds, found.steps, found.batch_size)
    layers = {"minilm": 6, "smollm2": 30}[found.model]
    assert job["split"] / layers == found.split_share
    assert runs[0]["step"]["back_perturbations"] == found.back_perturbations
    assert runs[0]["step"]["learning_rate"] == found.learning_rate
    assert accuracy == pytest.approx(found.accuracy, abs=1e-4)
    assert _first(curve, found.accuracy) == found.forwards_to_it
    if found.mode == "full":
        assert found.rival_accuracy is None
    else:
        _, rival, rival_curve = _mean(found.model, found.mode, "backprop")
        assert rival == pytest.approx(found.rival_accuracy, abs=1e-4)
        assert _first(rival_curve, found.accuracy) == found.rival_forwards_to_it


def test_what_is_said_of_backpropagation_and_levels_is_what_the_stored_runs_say() -> None:
    kept = [run for run in _kept("droppeft.jsonl") if run["division"] == "movie"]
    layers = {"minilm": 6, "smollm2": 30}
    for task, found in BACKPROP_RUNS.items():
        at = {
            level: [run for run in kept if run["model"] == found.model and run["name"] == name]
            for name, level in (("full", 1.0), ("three-quarters", 4 / 6), ("half", 0.5), ("third", 2 / 6))
        }
        full = at.pop(1.0)
        assert full[0]["stld"] == {
            "steps": found.steps,
            "batch_size": found.batch_size,
            "learning_rate": found.learning_rate,
        }
        assert full[0]["rounds"] == found.rounds
        best = statistics.fmean(run["accuracy_end"] for run in full)
        lost = {
            share: best - statistics.fmean(run["accuracy_end"] for run in runs) for share, runs in at.items() if runs
        }
        assert all(run["level"] / layers[found.model] == share for share, runs in at.items() for run in runs)
        assert lost == pytest.approx(LOST_BY_LEVEL[task], abs=1e-4)


@pytest.fixture(scope="module")
def advised(tiny_export: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("advice")
    return tiny_export("bert", splits=(1, 2, 3), levels=(1, 2, 3)), write_rows(reviews(20, 1), folder / "rows.jsonl")


def _advise(capsys: pytest.CaptureFixture[str], bundle: Bundle, rows: Path, *flags: str) -> dict[str, Any]:
    code = main(["advise", "--model", str(bundle.path), "--data", str(rows), "--format", "json", *flags])
    out, err = capsys.readouterr()
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def _profile(folder: Path, bundle: Bundle, memory_bytes: int | None) -> Path:
    profile = made_profile(bundle)
    before = msgspec.structs.replace(profile.measured.before, memory_free_bytes=memory_bytes)  # type: ignore[union-attr]
    profile = msgspec.structs.replace(
        profile, device=None, measured=msgspec.structs.replace(profile.measured, before=before)
    )
    path = folder / f"{memory_bytes}.json"
    path.write_bytes(encode_profile(profile))
    return path


def test_memory_decides_between_full_depth_fewer_layers_and_forward_passes(
    advised: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = advised
    needs = {level: level_need(bundle.manifest, level) for level in (1, 2, 3)}
    enough = [bytes_for(needs[3], 8), bytes_for(needs[2], 1), bytes_for(needs[1], 1) - 1]
    flags = [flag for size in enough for flag in ("--profile", str(_profile(tmp_path, bundle, size)))]
    found = _advise(capsys, bundle, rows, *flags, "--cohort", "4")["boards"]
    assert [(board["kind"], board["level"]) for board in found] == [
        ("backprop", 3),
        ("backprop", 2),
        ("forward-only", None),
    ]
    assert found[0]["rows_at_once"] == 8
    assert found[1]["rows_at_once"] == 1
    assert "accuracy ended 0.032 below full depth" in found[1]["lacks"][0]
    assert (found[2]["split"], found[2]["back_perturbations"]) == (3, 64)
    assert "no level fits" in found[2]["because"]
    frozen = found[2]["frozen_front"]
    assert 0 < frozen["value"] < found[2]["seconds"]["value"]  # 1 ms a token and graph: 128 back passes, no front
    assert frozen["value"] == pytest.approx(found[2]["seconds"]["value"] * 128 / 130, rel=1e-3)
    assert 'train_front_from = "never"' in frozen["source"]
    assert found[0]["frozen_front"] is None
    assert any("1.5 times the forward passes" in lack for lack in found[2]["lacks"])
    for board in found:
        assert all(board[figure]["source"] for figure in FIGURES)
        assert all(board[figure]["value"] is not None for figure in FIGURES)
    assert found[0]["bytes_up"]["value"] == 4 * bundle.manifest.parameters[-1].stop


def test_the_seconds_are_those_of_the_profile(
    advised: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = advised
    found = _advise(capsys, bundle, rows, "--profile", str(_profile(tmp_path, bundle, 1 << 33)))
    board, tokens = found["boards"][0], found["longest_row_tokens"]
    # The made profile takes 1 ms a token and graph; four steps of eight rows each, all at once.
    assert board["seconds"]["value"] == pytest.approx(4 * 8 * tokens * 1e-3, rel=1e-3)
    assert "profile of made-up, measured on 2026-01-01" in board["seconds"]["source"]


def test_what_is_unknown_stays_unknown_and_says_what_measures_it(
    advised: tuple[Bundle, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = advised
    (board,) = _advise(capsys, bundle, rows, "--dir", PROFILES, "--profile", "raspberry-pi-5")["boards"]
    assert board["seconds"]["value"] is None  # the profile is MiniLM's
    assert "covey-edge profile --bundle" in board["seconds"]["source"]
    assert "its profile is of all-MiniLM-L6-v2 with 6 layers" in board["lacks"][0]
    assert board["board_memory"]["value"] == 8 << 30
    code = main(
        ["advise", "--model", str(bundle.path), "--data", str(rows), "--dir", PROFILES, "--profile", "raspberry-pi-5"]
    )
    out = capsys.readouterr().out
    assert code == 0
    assert "a round      not known (no profile has this graph; run covey-edge profile" in out


def test_every_board_of_the_folder_is_looked_at_where_none_is_named(
    advised: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _advise(capsys, *advised, "--dir", PROFILES, "--state-dir", str(tmp_path / "none"))
    assert [board["board"] for board in found["boards"]] == sorted(
        path.parent.name for path in Path(PROFILES).glob("*/latency.json")
    )


def test_devices_of_the_ledger_are_taken_with_what_they_announced_and_published(
    advised: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = advised
    ledger = Ledger(tmp_path / LEDGER_FILE, durable=False)
    for name, kind, free in (("pi-1", "backprop", 1 << 33), ("pi-2", "forward-only", 1 << 33), ("pi-3", "backprop", 1)):
        birth = {"capability": {"kind": kind, "levels": None, "bytes_free": free}}
        ledger.device_born("default", name, json.dumps(birth))
    store = ProfileStore("default", ledger)
    store.manifests[bundle.sha256] = bundle.manifest
    store.take("pi-1", payload_of(msgspec.structs.replace(made_profile(bundle), device="pi-1"), "pi-1"))
    ledger.close()
    found = _advise(capsys, bundle, rows, "--state-dir", str(tmp_path))["boards"]
    assert [(board["board"], board["kind"]) for board in found] == [
        ("pi-1", "backprop"),
        ("pi-2", "forward-only"),
        ("pi-3", "forward-only"),
    ]
    assert found[0]["seconds"]["value"] > 0
    assert found[0]["board_memory"] == {"value": 1 << 33, "source": "free memory that the device announced"}
    assert found[1]["because"] == "the device announced that it trains forward-only"
    assert found[1]["seconds"]["value"] is None  # it has published no profile
    assert "no profile of this board" in found[1]["lacks"][0]
    Ledger(tmp_path / LEDGER_FILE, durable=False).device_born("other", "pi-1", "{}")
    words = ["advise", "--model", str(bundle.path), "--data", str(rows), "--state-dir", str(tmp_path)]
    assert main(words) == ConfigError.exit_code
    assert "say which fleet" in capsys.readouterr().err


@pytest.mark.parametrize("memory_bytes", [1 << 33, 1], ids=["backprop", "forward-only"])
def test_the_job_that_it_writes_is_one_that_run_takes(
    advised: tuple[Bundle, Path], memory_bytes: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, rows = advised
    written = tmp_path / "job.toml"
    profile = _profile(tmp_path, bundle, memory_bytes)
    _advise(capsys, bundle, rows, "--profile", str(profile), "--write", str(written), "--name", "mine", "--cohort", "3")
    fitted, loaded = load_job(written, bundle.path)
    assert (fitted.job.name, fitted.job.cohort, fitted.split) == ("mine", 3, 3)
    assert Path(fitted.job.eval_file) == rows.resolve()
    assert loaded.sha256 == bundle.sha256
    assert (fitted.job.stld is not None) == (memory_bytes > 1)
    assert "# " in written.read_text()


def test_a_model_that_was_not_exported_is_refused_with_the_command_that_exports_it(
    advised: tuple[Bundle, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["advise", "--model", str(tmp_path), "--data", str(advised[1])]) == ConfigError.exit_code
    assert "covey export --model" in capsys.readouterr().err
