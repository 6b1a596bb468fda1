"""Thousands of wrong rows with one cause: one summary, the likely mistake, and the option that mends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from edge_runtime import cli as edge_cli
from edge_runtime.agent.config import read_edge_config
from edge_runtime.data.config import DataConfig
from edge_runtime.data.examples import read_examples, read_prompts
from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["bad", "good"]
MOST_LINES = 10
"""Lines of a summary, however many rows are wrong."""


def write(path: Path, content: str) -> DataConfig:
    path.write_text(content, encoding="utf-8")
    return DataConfig(str(path))


def error_of(data: DataConfig, labels: list[str] = LABELS) -> DataError:
    with pytest.raises(DataError) as caught:
        read_examples(data, labels)
    assert str(caught.value).count("\n") < MOST_LINES
    return caught.value


@pytest.mark.parametrize(
    ("written", "mistake", "names"),
    [
        (["0.0", "1.0"], "indexes with decimals", {"0.0": "bad", "1.0": "good"}),
        (["0.", "1.00"], "indexes with decimals", {"0.": "bad", "1.00": "good"}),
        ([0.0, 1.0], "indexes with decimals", {"0.0": "bad", "1.0": "good"}),
        (["Bad", "GOOD"], "differ in capitals or spaces", {"Bad": "bad", "GOOD": "good"}),
        ([" bad", "good "], "differ in capitals or spaces", {" bad": "bad", "good ": "good"}),
        ([False, True], "are true and false", {"false": "bad", "true": "good"}),
        (["FALSE", "TRUE"], "are true and false", {"FALSE": "bad", "TRUE": "good"}),
        ([1, 2], "counted from 1", {"1": "bad", "2": "good"}),
        (["1", "2"], "counted from 1", {"1": "bad", "2": "good"}),
    ],
)
def test_labels_written_otherwise(tmp_path: Path, written: list[Any], mistake: str, names: dict[str, str]) -> None:
    rows = [{"text": "a film", "label": written[index % 2]} for index in range(2000)]
    data = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    error = error_of(data)
    assert mistake in error.what
    for name, label in names.items():
        assert f'"{name}" = "{label}"' in error.hint
        assert f'--label-name "{name}={label}"' in error.hint
    mended = read_examples(msgspec.structs.replace(data, label_names=names), LABELS)
    assert [row.label for row in mended.rows] == [0, 1] * 1000


def test_other_names_of_labels_are_listed_and_nothing_is_guessed(tmp_path: Path) -> None:
    error = error_of(write(tmp_path / "a.csv", "text,label\n" + "a film,positive\nb film,negative\n" * 50))
    assert "other names for bad, good" in error.what
    assert '"negative" = "…", "positive" = "…"' in error.hint
    error = error_of(write(tmp_path / "a.csv", "text,label\na film,ugly\n" + "a film,good\n" * 50))
    assert "likely" not in error.what  # one label of many is a slip, not another spelling
    assert error.hint.startswith("correct these lines")


def test_a_name_that_leads_to_no_label_is_said(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", "text,label\na film,1.0\n")
    with pytest.raises(ConfigError, match=r"label_names says that '1.0' is 'great', which is not one of bad, good"):
        read_examples(msgspec.structs.replace(data, label_names={"1.0": "great"}), LABELS)


def test_a_number_of_5000_digits_is_no_label(tmp_path: Path) -> None:
    digits = "9" * 5000
    assert "1 of 1 rows are wrong" in error_of(write(tmp_path / "a.csv", f"text,label\na film,{digits}\n")).what
    error = error_of(write(tmp_path / "a.jsonl", f'{{"text": "a film", "label": {digits}}}\n'))
    assert "1 of 1 rows are wrong" in error.what


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("names", "missing", "option"),
    [
        (("text", "Label"), "no 'label'", 'label_field = "Label"'),
        (("Text", "LABEL"), "no 'text'", 'text_field = "Text" and label_field = "LABEL"'),
        (("text ", "label"), "no 'text'", 'text_field = "text "'),
        (("review", "stars"), "no 'text'", "text_field (now 'text') and label_field (now 'label')"),
        (("text", "stars"), "no 'label'", "label_field (now 'label')"),
    ],
)
def test_fields_of_other_names(tmp_path: Path, suffix: str, names: tuple[str, str], missing: str, option: str) -> None:
    if suffix == "csv":
        content = ",".join(names) + "\n" + "a film,good\n" * 2000
    else:
        content = (json.dumps(dict(zip(names, ("a film", "good"), strict=True))) + "\n") * 2000
    data = write(tmp_path / f"a.{suffix}", content)
    error = error_of(data)
    assert missing in error.what
    assert option in error.hint
    mended = msgspec.structs.replace(data, text_field=names[0], label_field=names[1])
    assert len(read_examples(mended, LABELS).rows) == 2000


def test_fields_of_other_names_in_completions(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", "Prompt,answer\na,b\n")
    with pytest.raises(DataError, match=r"no 'prompt' and no 'completion'") as caught:
        read_prompts(data)
    assert 'prompt_field = "Prompt"' in caught.value.hint


def test_swapped_columns(tmp_path: Path) -> None:
    data = write(tmp_path / "a.csv", "text,label\n" + "good,a long text\n" * 2000)
    error = error_of(data)
    assert "the columns are swapped" in error.what
    assert 'text_field = "label" and label_field = "text"' in error.hint
    assert (
        len(read_examples(msgspec.structs.replace(data, text_field="label", label_field="text"), LABELS).rows) == 2000
    )


@pytest.mark.parametrize("header", ["text,text,label", "text,label,label", "text;label;text"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str) -> None:
    delimiter = header[4]
    error = error_of(write(tmp_path / "a.csv", f"{header}\n" + f"good{delimiter}good{delimiter}good\n" * 9))
    assert "2 times; which column counts cannot be told" in error.what
    assert error.facts == "the header in line 1 has two columns of one name"


def test_two_other_columns_of_one_name_do_not_matter(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.csv", "note,note,,,text,label\n1,2,3,4,a film,good\n"), LABELS)
    assert [row.text for row in found.rows] == ["a film"]


def test_two_keys_of_one_name_are_refused(tmp_path: Path) -> None:
    line = '{"text": "a", "label": "good", "text": "b"}\n'
    error = error_of(write(tmp_path / "a.jsonl", line * 2000))
    assert "line 1: 'text' comes twice" in error.what
    assert "two fields of one name" in error.what
    beside = '{"text": "a", "label": "good", "note": 1, "note": {"text": 1, "text": 2}}\n'
    assert len(read_examples(write(tmp_path / "a.jsonl", beside), LABELS).rows) == 1


ROWS = [{"text": f"the film was bad {index}", "label": "bad"} for index in range(2000)]


@pytest.mark.parametrize(
    ("content", "what", "hint"),
    [
        (",\n".join(map(json.dumps, ROWS)) + ",\n", "a comma ends the lines", "sed -i"),
        ("\n".join(map(repr, ROWS)), "as Python prints them", "json.dumps"),
        ('["a film", "good"]\n' * 2000, "each line is an array of values", "as an object"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_of_another_shape(tmp_path: Path, content: str, what: str, hint: str, suffix: str) -> None:
    error = error_of(write(tmp_path / f"a.{suffix}", content))
    assert what in error.what
    assert hint in error.hint


def test_a_delimiter_at_the_end_of_csv_lines_adds_no_value(tmp_path: Path) -> None:
    found = read_examples(write(tmp_path / "a.csv", "text,label\na film,good,\nb film,bad,,,\n"), LABELS)
    assert len(found.rows) == 2
    error = error_of(write(tmp_path / "a.csv", "text,label\n" + "a film, not bad,good\n" * 2000))
    assert "contains the delimiter and has no quotes" in error.what


def test_data_check_takes_every_option_from_the_command_line_and_from_edge_toml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("1.0|~caf\xe9|s~\n0.0|no\n".encode("windows-1252"))
    options = ["--encoding", "windows-1252", "--delimiter", "|", "--quote", "~", "--columns", "label, text"]
    names = ["--label-name", "1.0=good", "--label-name", "0.0=bad"]
    arguments = ["data", "check", "--data", str(path), "--labels", "bad,good", "--format", "json"]
    assert edge_cli.main([*arguments, *options, *names]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"bad": 1, "good": 1}
    (tmp_path / "edge.toml").write_text(
        'name = "pi"\nbroker = "mqtt://127.0.0.1:1883"\n[data]\npath = "a.csv"\nencoding = "windows-1252"\n'
        'delimiter = "|"\nquote = "~"\ncolumns = ["label", "text"]\nlabel_names = { "1.0" = "good", "0.0" = "bad" }\n'
    )
    config = read_edge_config(tmp_path / "edge.toml").data
    assert [row.text for row in read_examples(config, LABELS).rows] == ["caf\xe9|s", "no"]
    assert edge_cli.main(["data", "check", "--config", str(tmp_path / "edge.toml"), "--labels", "bad,good"]) == 0
    for wrong in (
        ["--label-name", "good"],
        ["--delimiter", "::"],
        ["--quote", "''"],
        ["--delimiter", "|", "--quote", "|"],
    ):
        assert edge_cli.main([*arguments, *wrong]) == ConfigError.exit_code
    (tmp_path / "edge.toml").write_text('name = "pi"\nbroker = "mqtt://h"\n[data]\npath = "a.csv"\ndelimiter = "::"\n')
    with pytest.raises(ConfigError, match="delimiter is '::'"):
        read_edge_config(tmp_path / "edge.toml")
