"""Corrections: rows added on the device count with the next round, come before the owner's, and have a bound."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import bench_of, drain
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.agent.agent import Agent
from edge_runtime.cli import main
from edge_runtime.data.config import DataConfig
from edge_runtime.data.corrections import LONGEST_CHARACTERS, add_corrections
from edge_runtime.data.rows import load
from edge_runtime.errors import DataError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.reports import RoundReport

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def good(text: str, label: str = "good") -> dict[str, Any]:
    return {"text": text, "label": label}


RECORDS = st.lists(
    st.builds(good, st.sampled_from(["a", "b", "ü\n", "d e"]), st.sampled_from(["good", "bad"])), max_size=12
)


@settings(max_examples=25, deadline=None)
@given(st.lists(RECORDS, max_size=4), st.integers(1, 5))
def test_the_file_is_what_a_bounded_ordered_map_would_be(
    tmp_path_factory: pytest.TempPathFactory, calls: Sequence[list[dict[str, Any]]], most: int
) -> None:
    path = tmp_path_factory.mktemp("corrections") / "corrections.jsonl"
    model: dict[str, str] = {}
    for records in calls:
        added = add_corrections(path, records, most)
        for record in records:
            if model.get(record["text"]) != record["label"]:
                model.pop(record["text"], None)
                model[record["text"]] = record["label"]
        assert added.added + added.replaced + added.repeated == len(records)
        assert added.dropped == max(0, len(model) - most)
        model = dict(list(model.items())[-most:])
        if model:
            assert [(row["text"], row["label"]) for row in rows_of(path)] == list(model.items())
        assert added.rows == len(model)


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "corrections.jsonl"
    program = """
import sys
from pathlib import Path
from edge_runtime.data.corrections import add_corrections
for index in range(10):
    add_corrections(Path(sys.argv[1]), [{"text": f"{sys.argv[2]} {index}", "label": "good"}], 1000)
"""
    running = [subprocess.Popen([sys.executable, "-c", program, str(path), str(name)]) for name in range(4)]
    assert [process.wait(100) for process in running] == [0] * 4
    assert {row["text"] for row in rows_of(path)} == {f"{name} {index}" for name in range(4) for index in range(10)}
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"text": "secret words"}, "row 2 has text"),
        ({**good("secret words"), "extra": 1}, "row 2 has extra, label, text"),
        (good(" "), "row 2: text is empty"),
        ({"text": "secret words", "label": None}, "row 2: label is no text"),
        ({"text": "secret words", "label": True}, "row 2: label is no text"),
        (good("secret \ud83d words"), "half a character"),
        (good("secret \0 words"), "half a character"),
        (good("secret".ljust(LONGEST_CHARACTERS + 1)), "characters; a correction may have 1,000,000"),
        ({"prompt": "", "completion": ""}, "row 2: completion is empty"),
        ({}, "row 2 has nothing"),
    ],
)
def test_a_wrong_row_adds_nothing_and_is_not_quoted(tmp_path: Path, record: dict[str, Any], words: str) -> None:
    path = tmp_path / "corrections.jsonl"
    add_corrections(path, [good("first")], 10)
    before = path.read_bytes()
    with pytest.raises(DataError, match=words) as raised:
        add_corrections(path, [good("second"), record], 10)
    assert "secret" not in raised.value.facts
    assert path.read_bytes() == before


def test_a_damaged_file_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "corrections.jsonl"
    path.write_text('{"text": "a", "label": "good"}\n{"text": "secret\n')
    with pytest.raises(DataError, match=r"corrections\.jsonl: line 2 is no JSON object") as raised:
        add_corrections(path, [good("b")], 10)
    assert "secret" not in raised.value.facts
    assert path.read_text().endswith("secret\n")


def data_of(folder: Path, **fields: Any) -> DataConfig:
    path = folder / "rows.csv"
    path.write_text("text;label\na good film;good\na bad film;bad\na long film;bad\n")
    return DataConfig(str(path), corrections=str(folder / "corrections.jsonl"), **fields)


def test_a_correction_comes_before_the_owners_row_and_the_owners_file_stays(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    data = data_of(tmp_path)
    own = (tmp_path / "rows.csv").read_bytes()
    without = load(tiny_bundle, data)
    (tmp_path / "corrections.jsonl").write_text("")
    assert load(tiny_bundle, data).used == without.used
    add_corrections(tmp_path / "corrections.jsonl", [good("a long film"), good("another film", "bad")], 10)
    found = load(tiny_bundle, data)
    labels = tiny_bundle.manifest.task.labels
    assert [(row.text, labels[row.label]) for row in found.used] == [  # type: ignore[union-attr]
        ("a good film", "good"),
        ("a bad film", "bad"),
        ("a long film", "good"),
        ("another film", "bad"),
    ]
    assert found.rows.labels == [row.label for row in found.used]  # type: ignore[union-attr]
    assert list(found.rows.tokens[:2]) == list(without.rows.tokens[:2])
    assert len(found.rows) == 4
    assert "corrections.jsonl adds 2 corrections, 1 of them for rows of this file" in found.notes
    assert (tmp_path / "rows.csv").read_bytes() == own


def test_corrections_that_the_bundle_does_not_take_are_named(tiny_bundle: Bundle, tmp_path: Path) -> None:
    data = data_of(tmp_path)
    add_corrections(tmp_path / "corrections.jsonl", [good("a film", "ugly")], 10)
    with pytest.raises(DataError, match=r"corrections\.jsonl"):
        load(tiny_bundle, data)


def test_the_next_round_uses_them(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with bench_of(tmp_path, tiny_bundle) as bench:
        path = bench.root / "corrections.jsonl"
        data = msgspec.structs.replace(bench.config.data, corrections=str(path))
        agent = Agent(msgspec.structs.replace(bench.config, data=data), bench.store, bench.hub.join(), "boot")
        reports = bench.hub.join()
        reports.subscribe(bench.topic("report"))

        def offer(attempt: int) -> RoundReport:
            plan = bench.train_plan(bench.initial(), attempt=attempt)
            bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
            agent.serve_waiting()
            agent.serve_waiting()
            report = drain(reports)[-1]
            assert isinstance(report, RoundReport)
            return report

        before = offer(0)
        add_corrections(path, [good("a film that nobody knew"), good("another one", "bad")], 10)
        assert offer(1).examples == before.examples + 2


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The edge.toml of a device that has taken part in no round."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(good("a film")) + "\n")
    path = tmp_path / "edge.toml"
    path.write_text(
        'fleet = "f"\nname = "pi"\nbroker = "mqtt://127.0.0.1:1"\n[data]\npath = "rows.jsonl"\nmost_corrections = 3\n'
    )
    return path


def test_the_command_adds_texts_and_lines(
    device: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["data", "add", "--config", str(device), "--format", "json"]
    assert main([*words, "--label", "good", "one", "two"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["added"], said["rows"]) == (2, 2)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "two", "label": "bad"}\n\n{"text": "3", "label": 0}\n'))
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["added"], said["replaced"], said["rows"]) == (1, 1, 3)
    assert main([*words, "--label", "bad", "four"]) == 0
    assert json.loads(capsys.readouterr().out)["dropped"] == 1
    assert [row["text"] for row in rows_of(device.parent / "corrections.jsonl")] == ["two", "3", "four"]


@pytest.mark.parametrize(
    ("words", "stdin", "code"),
    [
        (["a text"], "", 3),
        (["--label", "good"], "", 3),
        ([], "", 4),
        ([], "no JSON\n", 4),
        ([], "[1]\n", 4),
        ([], "[" * 100_000, 4),
    ],
)
def test_what_is_no_row_is_refused(
    device: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], stdin: str, code: int
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    assert main(["data", "add", "--config", str(device), *words]) == code
    assert not (device.parent / "corrections.jsonl").exists()
