"""``covey-edge data check``: one summary of good rows, with what is probably not meant, by line or by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.survey import is_misread, lengths_of, repeats_of


def check(capsys: pytest.CaptureFixture[str], path: Path, *options: str) -> tuple[dict[str, Any], str]:
    """Return what the command says, for programs and for people."""
    arguments = ["data", "check", "--data", str(path), *options]
    arguments += [] if {"--bundle", "--task"} & set(options) else ["--labels", "bad,good"]
    assert edge_cli.main([*arguments, "--format", "json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert edge_cli.main(arguments) == 0
    return values, capsys.readouterr().out


def write(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), "utf-8")
    return path


def test_repeated_and_contradicting_rows_are_named_with_the_first_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [("a", "good"), ("b", "bad"), ("a", "good"), ("b", "good"), ("a", "good")]
    values, text = check(capsys, write(tmp_path / "a.jsonl", rows))
    assert values["duplicates"] == [{"line": 3, "first": {"line": 1}}, {"line": 5, "first": {"line": 1}}]
    assert values["contradictions"] == [{"line": 4, "first": {"line": 2}}]
    assert "likely: texts stand in several rows with different answers (1 row: line 4 as line 2)" in text
    assert "more than once, and count more than others (2 rows: line 3 as line 1, line 5 as line 1)" in text
    assert values["form"] == "JSON Lines"


@pytest.mark.parametrize(
    ("labels", "what"),
    [(["good", "good"], "every row has the label 'good'"), (["good", "bad"], None)],
)
def test_one_label_alone_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[str], what: str | None
) -> None:
    values, text = check(capsys, write(tmp_path / "a.jsonl", list(zip("ab", labels, strict=True))))
    assert len(values["findings"]) == (what is not None)
    assert what is None or f"likely: {what}" in text


def test_a_label_that_no_row_has_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.jsonl", [("a", "1"), ("b", "2")])
    assert edge_cli.main(["data", "check", "--data", str(path), "--labels", "zero,one,two"]) == 0
    assert "no row has the label 'zero'" in capsys.readouterr().out


@given(text=st.text(st.characters(codec="utf-8", min_codepoint=0xA1), min_size=1))
def test_utf_8_that_was_read_as_latin_1_is_known(text: str) -> None:
    assert is_misread("so " + text.encode().decode("latin-1"))


@pytest.mark.parametrize(
    "text", ["café", "schön – „ja“", "Ça va?", "5 °C ± 1", "日本語", "naïve", "ÀÂÃ ÊÎ", "Â", "", "€5"]
)
def test_text_that_is_right_is_not_taken_for_misread(text: str) -> None:
    assert not is_misread(text)
    assert not text.strip() or not text.isascii() or not is_misread(text * 2)


@pytest.mark.parametrize(
    ("options", "mending"), [((), "iconv"), (("--encoding", "windows-1252"), 'encoding = "utf-8"')]
)
def test_a_wrong_encoding_is_said_with_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], mending: str
) -> None:
    text = "a café" if options else "a café".encode().decode("windows-1252")
    (tmp_path / "a.csv").write_text(f"text,label\n{text},good\nno,bad\n", "utf-8")
    values, text = check(capsys, tmp_path / "a.csv", *options)
    (finding,) = values["findings"]
    assert finding["places"] == [{"line": 2}]
    assert mending in finding["what_to_do"]
    if options:
        assert check(capsys, tmp_path / "a.csv", "--encoding", "utf-8")[0]["findings"] == []


def test_lost_characters_and_a_column_of_numbers_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, _ = check(capsys, write(tmp_path / "a.jsonl", [("caf\ufffd", "good"), ("12", "bad"), ("-3.5", "bad")]))
    assert [finding["rows"] for finding in values["findings"]] == [1, 2]
    assert "text_field" in values["findings"][1]["what_to_do"]


def test_a_csv_file_says_how_it_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.csv").write_text("\ntext;label\n'a;b';good\n'c';bad\n")
    values, text = check(capsys, tmp_path / "a.csv")
    assert values["form"] == "CSV, a semicolon between columns, single quotes, header in line 2"
    assert values["form"] in text


def test_files_of_a_directory_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, text in (("good/1.txt", "fine"), ("bad/2.txt", "fine"), ("bad/3.txt", "no\0")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    values, text = check(capsys, tmp_path)
    assert values["skipped"][0]["where"] == "bad/3.txt"
    assert values["contradictions"] == [{"file": 3, "where": "good/1.txt", "first": {"file": 1, "where": "bad/2.txt"}}]
    assert "good/1.txt as bad/2.txt" in text


def test_prompts_are_summed_up_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": "", "completion": " a"}, {"prompt": "", "completion": " b"}, {"prompt": "", "completion": " a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values, _ = check(capsys, tmp_path / "a.jsonl", "--task", "causal-lm")
    assert values["empty_prompts"] == 3
    assert values["duplicates"] == [{"line": 3, "first": {"line": 1}}]
    assert values["contradictions"] == []


def test_tokens_and_cut_rows_are_counted_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Bundle
) -> None:
    labels = tiny_bundle.manifest.task.labels
    limit = tiny_bundle.manifest.task.max_tokens
    long = "the film was good " * limit
    path = write(tmp_path / "a.jsonl", [("a film", labels[0]), (long, labels[1]), (long + "!", labels[1])])
    values, text = check(capsys, path, "--bundle", str(tiny_bundle.path))
    assert values["cut_rows"] == [{"line": 2}, {"line": 3}]
    assert values["tokens_max"] == values["tokens_95_percent"] == limit
    assert "2 rows lost tokens at that limit: lines 2, 3" in text
    assert "likely: most rows are longer than the model's" in text
    assert "--max-tokens" in text


@given(counts=st.lists(st.integers(1, 500), min_size=1))
def test_lengths(counts: list[int]) -> None:
    found = lengths_of(counts)
    assert found.median <= found.percentile_95 <= found.longest == max(counts)
    assert sum(count <= found.percentile_95 for count in counts) >= 0.95 * len(counts)


@given(rows=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2))))
def test_every_repeated_row_is_named_once(rows: list[tuple[str, int]]) -> None:
    found = repeats_of([text for text, _ in rows], [answer for _, answer in rows], range(len(rows)))
    assert len(found.same) == len(rows) - len(set(rows))
    assert len(found.other) == len(set(rows)) - len({text for text, _ in rows})
    assert all(rows[number] == rows[first] for number, first in found.same)
    assert all(rows[number][0] == rows[first][0] for number, first in found.other)
