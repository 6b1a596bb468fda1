"""An owner's own Python changes rows ([data] transform): edge.toml alone names it, and its errors name the row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_runtime import cli as edge_cli
from edge_runtime.agent.config import read_edge_config
from edge_runtime.data.config import DataConfig
from edge_runtime.data.examples import Completion, Row, read_examples, read_prompts
from edge_runtime.errors import ConfigError, DataError
from server.job.job import job_of

LABELS = ["bad", "good"]
MINE = """
def stars(row):
    if row["stars"] == "3":
        return None
    return {"text": row["title"] + ": " + row["review"], "label": int(row["stars"]) > 3 and "good" or "bad"}

def number(row):
    return 5

def leave(row):
    raise SystemExit("private words")

def ask(row):
    return {"prompt": row["question"], "completion": " " + row["answer"]}

not_callable = 5
"""
EDGE = 'name = "pi"\nbroker = "mqtt://127.0.0.1:1883"\n[data]\npath = "{path}"\ntransform = "{transform}"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "a.csv").write_text("stars;title;review\n5;Fine;a film\n3;So;so\n1;No;never\n")
    return tmp_path


def configured(folder: Path, transform: str, path: str = "a.csv") -> DataConfig:
    (folder / "edge.toml").write_text(EDGE.format(path=path, transform=transform))
    return read_edge_config(folder / "edge.toml").data


def test_rows_pass_through_a_function_of_a_file_beside_edge_toml(folder: Path) -> None:
    found = read_examples(configured(folder, "mine:stars"), LABELS)
    assert found.rows == [Row("Fine: a film", 1), Row("No: never", 0)]
    assert found.lines == [2, 4]
    assert found.notes[-1] == "mine.py:stars leaves out 1 rows of a.csv"
    assert found.form.endswith("through mine.py:stars")


def test_a_change_of_the_function_counts_when_rows_are_read_again(folder: Path) -> None:
    data = configured(folder, "mine:stars")
    (folder / "mine.py").write_text(MINE.replace('row["title"] + ": " + ', ""))
    assert read_examples(data, LABELS).rows[0] == Row("a film", 1)


@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.parquet"])
def test_every_kind_of_file_passes(folder: Path, name: str) -> None:
    rows = [{"question": "1+1?", "answer": "2"}]
    if name == "q.parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.Table.from_pylist(rows), folder / name)
    else:
        (folder / name).write_text(json.dumps(rows if name == "q.json" else rows[0]))
    assert read_prompts(configured(folder, "mine:ask", name)).rows == [Completion("1+1?", " 2")]


@pytest.mark.parametrize(
    ("function", "line", "what"),
    [
        ("ask", 2, "mine.py:ask raised KeyError: 'question'"),
        ("number", 2, "mine.py:number returned int, neither a dict nor None"),
        ("leave", 2, "mine.py:leave raised SystemExit: private words"),
    ],
)
def test_an_error_of_the_function_names_the_row_and_stays_on_the_device(
    folder: Path, function: str, line: int, what: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(configured(folder, f"mine:{function}"), LABELS)
    assert f"line {line}: {what}" in caught.value.what
    assert "the transform does not expect such rows" in caught.value.what
    assert caught.value.facts == "3 of 3 rows are wrong, the first in lines 2, 3, 4"


@pytest.mark.parametrize(
    ("transform", "what"),
    [
        ("mine:absent", "has no function absent"),
        ("mine:not_callable", "has no function not_callable"),
        ("no_such_module:f", "cannot import no_such_module: ModuleNotFoundError"),
        ("broken:f", "broken.py: SyntaxError"),
    ],
)
def test_a_function_that_is_not_there_is_an_error(folder: Path, transform: str, what: str) -> None:
    (folder / "broken.py").write_text("def")
    with pytest.raises(DataError) as caught:
        read_examples(configured(folder, transform), LABELS)
    assert what in caught.value.what
    assert "private" not in caught.value.facts


def test_a_wrong_name_is_refused_with_the_configuration(folder: Path) -> None:
    for wrong in ("mine", "mine:", ":f", "mine:a b"):
        with pytest.raises(ConfigError, match="which is not module:function"):
            configured(folder, wrong)


def test_no_job_can_name_a_function() -> None:
    with pytest.raises(ConfigError, match="transform"):
        job_of({"name": "j", "eval_file": "/rows.csv", "eval_data": {"transform": "os:system"}})


def test_data_check_takes_it_from_both_sides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured(folder, "mine:stars")
    arguments = ["data", "check", "--labels", "bad,good", "--format", "json", "--config", str(folder / "edge.toml")]
    assert edge_cli.main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == {"bad": 1, "good": 1}
    assert edge_cli.main([*arguments, "--transform", "mine:number"]) == DataError.exit_code
