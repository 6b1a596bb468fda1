"""The comparison of methods: what follows from kept runs, what is drawn, how runs take turns, and the second task."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT

from benchmarks.harness.division import DEVICES, write_device_rows, write_held_out
from benchmarks.harness.tasks import REVIEWS
from benchmarks.learning import convergence, convergence_report, convergence_runs
from benchmarks.learning.convergence import BUNDLE, Comparison, Turns
from benchmarks.learning.convergence_methods import PLANS, Method
from server.samples.newsgroups import GROUPS, divide_newsgroups, read_newsgroups
from server.samples.reviews import Division, Review, completion


def kept(name: str, seed: int, losses: list[float], rows: str = "test", **more: Any) -> dict[str, Any]:
    """A run that spent 10 forwards from one evaluation to the next and started at a loss of 0.8."""
    curve = [[10.0 * (i + 1), loss, 0.5] for i, loss in enumerate(losses)]
    return {
        "model": "minilm",
        "mode": "lora",
        "name": name,
        "rows": rows,
        "job": {"seed": seed},
        "step": {"learning_rate": 0.01},
        "loss_start": 0.8,
        "loss_end": losses[-1],
        "accuracy_end": 0.5,
        "forwards": 10.0 * len(losses),
        "curve": curve,
        "bytes_up_per_device_round": 1,
        "bytes_down_per_device_round": 1,
        "wall_s": 1800.0,
        "peak_rss_mb": 1.0,
        **more,
    }


RUNS = [
    kept("mezo", 1, [0.7, 0.6]),
    kept("mezo", 2, [0.75, 0.7, 0.6]),
    kept("decomfl", 1, [0.7, 0.65]),
    kept("decomfl", 2, [0.6, 0.5]),
    kept("spzo", 1, [0.6, 0.5]),
    kept("spzo", 2, [0.4, 0.3]),
]


def test_a_saving_is_the_rivals_passes_to_a_loss_over_ours() -> None:
    assert convergence_runs.saving(RUNS, "mezo", "spzo") == {"median": 2.5, "min": 2.0, "max": 3.0, "each": [2.0, 3.0]}
    found = convergence_runs.saving(RUNS, "decomfl", "spzo", "mezo")
    assert found is not None
    assert found["each"] == [2.0, 1.0], "with seed 1 the rival never gets there: all that it spent counts"
    assert convergence_runs.saving(RUNS, "mezo", "nobody") is None
    late = [*RUNS[:1], kept("spzo", 1, [0.7, 0.65])]
    assert convergence_runs.saving(late, "mezo", "spzo") == {"median": 0.0, "min": 0.0, "max": 0.0, "each": [None]}


def test_a_saving_is_read_off_seconds_and_bytes_in_the_same_way() -> None:
    measured = [
        {**kept("mezo", 1, [0.7, 0.6]), "seconds": [4.0, 8.0], "bytes": [100, 200]},
        {**kept("spzo", 1, [0.7, 0.5]), "seconds": [1.0, 3.0], "bytes": [900, 1000]},
    ]
    for axis, ratio in ((convergence_runs.SECONDS, 4.0), (convergence_runs.BYTES, round(200 / 950, 3))):
        found = convergence_runs.saving(measured, "mezo", "spzo", "mezo", axis)
        assert found is not None
        assert found["each"] == [ratio]
    assert convergence_runs.saving(RUNS, "mezo", "spzo", "mezo", convergence_runs.BYTES) is None, "nobody measured it"


def test_the_newest_run_of_a_seed_counts() -> None:
    finer = {**RUNS[0], "curve": [[5.0, 0.65, 0.5], [10.0, 0.6, 0.5], [20.0, 0.6, 0.5]]}
    assert convergence_runs.by_seed([*RUNS, finer], "mezo")[1] == finer
    found = convergence_runs.saving([*RUNS, finer], "mezo", "spzo", "mezo")
    assert found is not None
    assert found["each"][0] == 1.0, "its rival was at the loss after 10 forwards"
    assert "| mezo | 0.01 | 2 |" in convergence_report.table([*RUNS, finer], ["mezo"])


def test_the_mean_loss_on_the_way_is_the_area_under_the_curve() -> None:
    assert convergence_runs.mean_loss(kept("a", 1, [0.6, 0.6])) == pytest.approx((0.7 + 0.6) / 2)


def test_our_method_is_chosen_on_validation_rows_alone() -> None:
    slow, quick = kept("spzo", 0, [0.7, 0.6, 0.5], "validation"), kept("spzo-loo", 0, [0.6, 0.55], "validation")
    tuning = [slow, quick, kept("spzo-loo", 0, [0.9], "validation"), kept("spzo-x", 0, [0.1])]
    names = ["mezo", "spzo", "spzo-loo", "spzo-x"]
    assert convergence_runs.chosen_of_ours(tuning, names) == "spzo", "without MeZO, that with the lowest loss"
    mezo = [kept("mezo", 0, [0.8], "validation"), kept("mezo", 0, [0.6], "validation")]
    assert convergence_runs.chosen_of_ours([*tuning, *mezo], names) == "spzo-loo"
    assert convergence_runs.chosen_of_ours([*tuning, kept("mezo", 0, [0.2], "validation")], names) is None
    assert convergence_runs.chosen_of_ours(tuning[3:], ["spzo-x"]) is None


def test_the_soonest_rate_is_that_of_the_fewest_passes_to_mezos_loss() -> None:
    def tuned(name: str, rate: float, losses: list[float]) -> dict[str, Any]:
        return kept(name, 0, losses, "validation", step={"learning_rate": rate})

    ends_best, is_soonest = tuned("spzo", 3.0, [0.9, 0.7, 0.4]), tuned("spzo", 0.3, [0.55, 0.5, 0.5])
    never, ties = tuned("spzo", 0.1, [0.7, 0.65]), tuned("spzo", 0.2, [0.55, 0.52, 0.52])
    mezo = [tuned("mezo", 1.0, [0.9]), tuned("mezo", 0.01, [0.7, 0.6])]
    runs = [ends_best, is_soonest, never, ties, *mezo, kept("spzo", 1, [0.1])]
    assert convergence_runs.soonest_rate(runs, "spzo") == 0.3
    assert convergence_runs.soonest_rate([never, *mezo], "spzo") is None
    assert convergence_runs.soonest_rate(runs[:4], "spzo") is None, "MeZO was not tuned"


def test_savings_of_the_soonest_rates_are_in_the_line(tmp_path: Path) -> None:
    tuning = [kept("mezo", 0, [0.7, 0.6], "validation"), kept("spzo", 0, [0.6], "validation")]
    soon = [kept("spzo-soon", seed, [0.55]) for seed in (1, 2)] + [kept("decomfl-soon", 1, [0.7, 0.6])]
    file = write_runs(tmp_path / "runs.jsonl", [*RUNS, *tuning, *soon])
    names = ["mezo", "decomfl", "spzo", "decomfl-soon", "spzo-soon"]
    found = json.loads(
        convergence_report.summarize(file, "minilm", "lora", REVIEWS, names, 2, "minilm").splitlines()[-1]
    )
    assert found["compute_mezo_over_ours_soonest"] == 2.0
    assert found["compute_decomfl_over_ours_soonest"] == 2.0
    assert found["compute_mezo_over_ours"] == 2.0


def write_runs(path: Path, runs: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(run) + "\n" for run in runs))
    return path


def test_the_summary_says_what_was_not_run_and_keeps_tasks_apart(tmp_path: Path) -> None:
    tuning = kept("spzo", 0, [0.5], "validation")
    other = kept("spzo", 3, [0.2, 0.1], task="newsgroups")
    file = write_runs(tmp_path / "runs.jsonl", [*RUNS, tuning, other])
    names = ["mezo", "decomfl", "spzo", "fzoo"]
    *missing, line = convergence_report.summarize(file, "minilm", "lora", REVIEWS, names, 2, "minilm").splitlines()
    assert missing == ["not run: fzoo: 0 of 2 seeds"]
    found = json.loads(line)
    assert found["ours"] == "spzo"
    assert found["compute_mezo_over_ours"] == 2.0
    assert found["core_hours"] == 3.5
    assert len(convergence_runs.test_runs(file, "minilm", "lora", "newsgroups", names)) == 1


def test_the_report_prints_table_and_json_without_running_anything(tmp_path: Path) -> None:
    file = write_runs(tmp_path / "runs.jsonl", RUNS)
    command = [sys.executable, "-m", "benchmarks.learning.convergence", "--summary", "--results", str(file)]
    made = subprocess.run(
        [*command, "--workdir", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "| spzo | 0.01 | 2 |" in made.stdout
    assert json.loads(made.stdout.splitlines()[-1])["forwards_mezo_over_spzo"]["each"] == [2.0, 3.0]
    assert not (tmp_path / "none").exists()


def test_a_picture_has_an_axis_for_each_thing_that_runs_measured(tmp_path: Path) -> None:
    full = [{**run, "seconds": [1.0, 2.0], "bytes": [100, 200]} for run in RUNS[2:]]
    for name, runs in (("forwards", RUNS[2:]), ("all", full)):
        convergence_report.draw(runs, ["decomfl", "spzo"], "title", tmp_path / f"{name}.png")
    assert (tmp_path / "all.png").stat().st_size > (tmp_path / "forwards.png").stat().st_size


def comparison(tmp_path: Path, task: str = REVIEWS) -> Comparison:
    plan = PLANS["minilm"]
    return Comparison(tmp_path / "runs.jsonl", "minilm", "lora", task, plan, plan.setup, {BUNDLE: "bundle"})


def test_runs_take_turns_and_none_begins_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most, lock, both = 0, 0, threading.Lock(), threading.Barrier(2, timeout=60)
    tried: list[tuple[str, int]] = []

    def run(_path: Path, _program: object, key: dict[str, Any], *_: object) -> tuple[dict[str, Any], float]:
        nonlocal at_work, most
        with lock:
            at_work, most = at_work + 1, max(most, at_work + 1)
            tried.append((key["name"], key["job"]["seed"]))
        both.wait()  # two runs are always under way together
        with lock:
            at_work -= 1
        if key["name"] == "bad":
            raise RuntimeError("no such device")
        return kept(key["name"], key["job"]["seed"], [0.5]) | {"accuracy_start": 0.1}, 1.0

    monkeypatch.setattr(convergence, "find_or_run", run)
    one_rate = Method("spzo", 1, {}, (0.1,), job={})
    comparison(tmp_path).run({"a": one_rate, "b": one_rate}, 2, tunes=True)
    assert most == 2
    assert sorted(tried) == [(name, seed) for name in "ab" for seed in (1, 2, 3)]
    tried.clear()
    with pytest.raises((RuntimeError, SystemExit)):
        comparison(tmp_path).run({"bad": one_rate}, 2, tunes=True)
    assert len(tried) < 4


def test_ratios_are_read_off_evaluations_of_each_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is evaluated each round, the rivals on the test rows; what is not compared keeps the setup's evaluations."""
    asked: dict[tuple[str, str], int] = {}

    def run(_path: Path, _program: object, key: dict[str, Any], *_: object) -> tuple[dict[str, Any], float]:
        asked[key["name"], key["rows"]] = key["job"]["eval_every"]
        return kept(key["name"], key["job"]["seed"], [0.5]) | {"accuracy_start": 0.1}, 1.0

    monkeypatch.setattr(convergence, "find_or_run", run)
    methods = PLANS["minilm"].methods
    names = ("mezo", "decomfl", "spzo", "spzo-frozen-head")
    comparison(tmp_path).run({name: methods[name] for name in names}, 1, tunes=True)
    each_round = {key for key, rounds in asked.items() if rounds == 1}
    assert each_round == {(name, "test") for name in (*names[:2], names[3])} | {(names[3], "validation")}
    assert asked["spzo", "test"] == PLANS["minilm"].setup.eval_every


def test_a_causal_models_rows_are_texts_behind_their_labels(tmp_path: Path) -> None:
    division = Division([[Review("a film", "fresh")]] * DEVICES, [Review("one", "rotten"), Review("two", "fresh")])
    write_held_out(division, tmp_path, completion)
    write_device_rows(division.devices, tmp_path, row_of=completion)
    assert json.loads((tmp_path / "00.jsonl").read_text()) == {"prompt": "fresh:", "completion": " a film"}
    assert json.loads((tmp_path / "validation.jsonl").read_text()) == {"prompt": "rotten:", "completion": " one"}
    plan = PLANS["smollm2-lm"]
    assert plan.is_causal
    assert not plan.methods.keys() & {"backprop", "probe"}, "they need labels"


def test_the_second_task_takes_the_rates_of_the_first(tmp_path: Path) -> None:
    tuned = [
        kept("spzo", 0, [loss], "validation", step={"learning_rate": rate}) for rate, loss in ((0.1, 0.5), (0.2, 0.4))
    ]
    write_runs(tmp_path / "runs.jsonl", [*tuned, kept("spzo", 0, [0.1], "validation", task="newsgroups")])
    method = Method("spzo", 1, {}, (0.1, 0.2))
    turns = Turns(threading.Semaphore(1), threading.Event())
    other = comparison(tmp_path, "newsgroups")
    assert other._rate("spzo", method, turns) == 0.2
    with pytest.raises(SystemExit, match="run it with --model minilm --task reviews first"):
        other._rate("mezo", method, turns)
    soon = dataclasses.replace(method, soonest_of="spzo")
    with pytest.raises(SystemExit, match="run mezo and spzo with --model minilm first"):
        other._rate("spzo-soon", soon, turns)
    larger = dataclasses.replace(comparison(tmp_path), model="mpnet", rates_of="minilm")
    assert larger._rate("spzo", method, turns) == 0.2, "so does another model, where it is told to"


def test_newsgroups_are_read_and_divided_with_a_skew(tmp_path: Path) -> None:
    lines = "".join(f"{GROUPS[i % 4]}\tmessage {i}\n" for i in range(400))
    (tmp_path / "20newsgroups-train.tab").write_text("Category\tText\nd\tstring\nclass\t\n" + lines + "\nsci.med\t \n")
    rows = read_newsgroups(tmp_path / "20newsgroups-", "train")
    assert rows[1] == Review("message 1", GROUPS[1])
    assert len(rows) == 400, "an empty message is left out"
    division = divide_newsgroups(rows, rows, 5, 40, 30, 0.1)
    assert [len(device) for device in division.devices] == [40] * 5
    assert len(division.test) == 30
    assert max(sum(row.label == group for row in division.devices[0]) for group in GROUPS) > 20
    assert divide_newsgroups(rows, rows, 5, 40, 30, 0.1) == division
