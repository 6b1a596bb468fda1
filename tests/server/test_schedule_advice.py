"""covey advise on schedules: it chooses what was measured to pay for the boards at hand, and says why and why not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from fleets import reviews, write_rows
from profiles import made_profile

from edge_runtime.bundle.behind import find_behind
from edge_runtime.protocol.profile_check import encode_profile
from server.advice.findings import FORWARD_FROM_RUNS, FROZEN_RUNS, KEPT_FRONT_RUNS, KeptFrontRun, ScheduleRun
from server.advice.schedules import kept_front, weighed_forward_from, weighed_frozen_front, weighed_kept_front
from server.cli import main
from server.serving.loaded_job import load_job

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

HEAD = "classify-head"
PAYS = KeptFrontRun("minilm", 3 / 6, 12, 4, 8, 0.006, 2.0, -0.01, 0.005, 1.0, 0.9)
BETTER = ScheduleRun("minilm", "better", "base", 0.5, 0.02, 0.01, 1.0, 1.1)
WORSE = ScheduleRun("minilm", "worse", "base", 2 / 3, -0.02, 0.01, 1.0, 0.5)
MUCH, LITTLE = 1 << 33, 1


@pytest.fixture(scope="module")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2), train="AB", levels=(1, "top:1", 2, "top:2"))


@pytest.fixture(scope="module")
def at_head(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(1, 2, 3), levels=(1, 2, 3))


class Advised:
    """What covey advise said of boards with so much memory each, and the job that it wrote."""

    def __init__(self, folder: Path, bundle: Bundle, *memory_bytes: int) -> None:
        self.folder, self.bundle = folder, bundle
        rows = write_rows(reviews(20, 1), folder / "rows.jsonl")
        self.words = ["advise", "--model", str(bundle.path), "--data", str(rows), "--write", str(folder / "job.toml")]
        for index, free in enumerate(memory_bytes):
            profile = made_profile(bundle)
            assert profile.measured is not None
            before = msgspec.structs.replace(profile.measured.before, memory_free_bytes=free)
            measured = msgspec.structs.replace(profile.measured, before=before)
            path = folder / f"{index}.json"
            path.write_bytes(encode_profile(msgspec.structs.replace(profile, device=None, measured=measured)))
            self.words += ["--profile", str(path)]

    def said(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        assert main([*self.words, "--format", "json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    def text(self, capsys: pytest.CaptureFixture[str]) -> str:
        assert main(self.words) == 0
        return capsys.readouterr().out


def test_boards_that_backpropagate_train_behind_a_kept_front_where_that_was_better(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KEPT_FRONT_RUNS, HEAD, PAYS)
    advised = Advised(tmp_path, bundle, MUCH, MUCH)
    found = advised.said(capsys)
    (weighed,) = found["schedules"]
    assert weighed["is_chosen"]
    assert "2.00 times the time" in weighed["because"]
    assert "+0.010 ± 0.005 against full depth's at the end, 1.000 times its loss, memory 0.90 of" in weighed["because"]
    fitted, _ = load_job(tmp_path / "job.toml", bundle.path)
    assert fitted.job.front == "frozen"
    assert fitted.job.stld is not None
    assert (fitted.job.rounds, fitted.job.stld.learning_rate) == (12, 0.006)
    (level,) = fitted.levels
    assert level in find_behind(bundle.path, bundle.manifest, fitted.split)
    for board in found["boards"]:
        assert board["level"] == level
        assert 0 < board["frozen_front"]["value"] < board["seconds"]["value"]
        assert "stay as they are" in board["lacks"][0]
    text = advised.text(capsys)
    assert "schedule: " in text
    assert "behind a kept front, split" in text
    assert "front frozen" in text


@pytest.mark.parametrize(
    "run", [replace(PAYS, time_full_over_ours=0.9), replace(PAYS, accuracy_less=0.02), replace(PAYS, loss_ratio=1.03)]
)
def test_a_kept_front_that_was_not_better_is_not_chosen(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: KeptFrontRun,
) -> None:
    monkeypatch.setitem(KEPT_FRONT_RUNS, HEAD, run)
    found = Advised(tmp_path, bundle, MUCH).said(capsys)
    assert [weighed["is_chosen"] for weighed in found["schedules"]] == [False]
    assert load_job(tmp_path / "job.toml", bundle.path)[0].job.front is None
    assert found["boards"][0]["frozen_front"] is None


def test_a_mixed_fleet_lets_backprop_devices_begin_where_that_was_better(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KEPT_FRONT_RUNS, HEAD, PAYS)
    monkeypatch.setitem(FORWARD_FROM_RUNS, HEAD, (WORSE, BETTER))
    found = Advised(tmp_path, bundle, MUCH, LITTLE).said(capsys)
    assert [board["kind"] for board in found["boards"]] == ["backprop", "forward-only"]
    kept, first = found["schedules"]
    assert (kept["is_chosen"], first["is_chosen"]) == (False, True)
    assert "not measured beside forward-only devices" in kept["because"]
    assert "+0.020 ± 0.010 against without it, 1.000 times its loss, for 1.10 of the passes" in first["because"]
    job = load_job(tmp_path / "job.toml", bundle.path)[0].job
    assert job.stld is not None
    assert job.stld.forward_from == job.rounds / 2
    assert job.front is None
    monkeypatch.setitem(FORWARD_FROM_RUNS, HEAD, (WORSE,))
    found = Advised(tmp_path, bundle, MUCH, LITTLE).said(capsys)
    assert not found["schedules"][1]["is_chosen"]
    job = load_job(tmp_path / "job.toml", bundle.path)[0].job
    assert job.stld is not None
    assert job.stld.forward_from == 0


@pytest.mark.parametrize(("run", "front"), [(BETTER, "frozen"), (WORSE, None)])
def test_forward_only_boards_freeze_the_front_where_that_was_better(
    at_head: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: ScheduleRun,
    front: str | None,
) -> None:
    monkeypatch.setitem(FROZEN_RUNS, HEAD, run)
    found = Advised(tmp_path, at_head, LITTLE).said(capsys)
    (weighed,), (board,) = found["schedules"], found["boards"]
    assert weighed["is_chosen"] == (front == "frozen")
    assert "no level fits" in board["because"]
    assert board["front_perturbations"] == (0 if front else 1)
    assert 0 < board["frozen_front"]["value"] < board["seconds"]["value"]
    assert load_job(tmp_path / "job.toml", at_head.path)[0].job.front == front


def test_cheaper_and_no_worse_pays_and_so_does_better_than_the_error() -> None:
    assert BETTER.pays
    assert not WORSE.pays
    assert replace(WORSE, accuracy_more=-0.01).pays
    assert not replace(BETTER, accuracy_more=0.01).pays
    assert not replace(BETTER, loss_ratio=1.03).pays


def test_what_was_not_measured_is_not_known(bundle: Bundle, at_head: Bundle) -> None:
    task = msgspec.structs.replace(bundle.manifest.task, kind="causal-lm")
    other = msgspec.structs.replace(bundle.manifest, task=task)
    behind = {1: ["top:2"]}
    assert kept_front(other, behind) is None
    for weighed in (
        weighed_kept_front(other, None, all_backpropagate=True),
        weighed_frozen_front(other, 2),
        weighed_forward_from(other, 20)[0],
        weighed_frozen_front(bundle.manifest, 2),
    ):
        assert not weighed.is_chosen
        assert "not known: it was" in weighed.because
    weighed = weighed_kept_front(at_head.manifest, kept_front(at_head.manifest, {3: []}), all_backpropagate=True)
    assert "the bundle has no training graphs behind a split; covey export" in weighed.because


@pytest.mark.parametrize(("norm", "front"), [(True, "frozen"), (False, None)])
def test_a_prompts_final_norm_is_trained_alone_where_the_bundle_can(
    tiny_export: Callable[..., Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    norm: bool,
    front: str | None,
) -> None:
    prompt = tiny_export("llama", task="classify-prompt", **({"norm": True, "splits": (2, 3)} if norm else {}))
    found = Advised(tmp_path, prompt, LITTLE).said(capsys)
    (weighed,), (board,) = found["schedules"], found["boards"]
    assert weighed["is_chosen"] == norm
    assert ("the final norm alone was at accuracy" in weighed["because"]) == norm
    assert any("--train-norm --split 3 makes it" in lack for lack in board["lacks"]) == (not norm)
    job = load_job(tmp_path / "job.toml", prompt.path)[0].job
    assert (job.front, job.split) == (front, 3 if norm else 2)
