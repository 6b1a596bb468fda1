"""docs/data.md: what it says to write is read as it says, its commands run, and the summary it shows is printed."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import repository

from edge_runtime import cli as edge_cli
from edge_runtime.agent.config import read_edge_config
from edge_runtime.data.conversations import Dialogue
from edge_runtime.data.examples import Completion, Row, read_examples, read_prompts
from server.job.job import read_job

LABELS = ["no", "yes"]
TALK = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
PAGE = (repository.ROOT / "docs" / "data.md").read_text("utf-8")
TEXTS = ["a film one remembers", "a café, closed"]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SETTINGS = [content for kind, content in BLOCKS if kind == "toml" and content.startswith("[data]")]


def lines(text: str, label: str) -> str:
    rows = [{text: TEXTS[0], label: "yes"}, {text: TEXTS[1], label: "no"}]
    return "\n".join(map(json.dumps, rows))


def parquet(path: Path) -> None:
    arrow, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    writer.write_table(arrow.table({"text": TEXTS, "label": ["yes", "no"], "other": [1, 2]}), path)


def folders(path: Path) -> None:
    for name, text in (("yes/1.txt", TEXTS[0]), ("no/2.txt", TEXTS[1])):
        (path / name).parent.mkdir(parents=True)
        (path / name).write_text(text, "utf-8")


def content(text: str, encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda path: path.write_bytes(text.encode(encoding)) and None


FILES: dict[str, Callable[[Path], None]] = {
    "reviews.jsonl": content(lines("text", "label")),
    "export.jsonl": content(lines("review", "liked")),
    "reviews.json": content("[" + lines("text", "label").replace("\n", ",\n") + "]"),
    "reviews.csv": content(f"text;label\n{TEXTS[0]};yes\n{TEXTS[1]};no\n"),
    "no_header.csv": content(f'yes,"{TEXTS[0]}"\nno,"{TEXTS[1]}"\n'),
    "reviews.parquet": parquet,
    "reviews": folders,
    "stars.csv": content(f'text,label\n{TEXTS[0]},5.0\n"{TEXTS[1]}",1.0\n'),
    "old.csv": content(f'text,label\n{TEXTS[0]},yes\n"{TEXTS[1]}",no\n', "windows-1252"),
    "answers.jsonl": content('{"prompt": "Q: 1+1? A:", "completion": " 2"}\n'),
    "talks.jsonl": content(json.dumps({"messages": TALK}) + "\n"),
    "ratings.csv": content('title,review,stars\nOne,a film,5\nTwo,so so,3\nThree,"no, never",1\n'),
}


def write(folder: Path, name: str) -> None:
    FILES[name](folder / name)
    (folder / "mine.py").write_text(next(text for kind, text in BLOCKS if kind == "python"))


def test_every_file_of_the_page_has_a_section() -> None:
    assert sorted(re.findall(r'^path = "(.*?)"', "".join(SETTINGS), re.MULTILINE)) == sorted(FILES)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda text: text.split('"')[1])
def test_what_the_page_says_to_write_is_read(tmp_path: Path, settings: str) -> None:
    name = settings.split('"')[1]
    write(tmp_path, name)
    (tmp_path / "edge.toml").write_text(f'name = "pi"\nbroker = "mqtt://127.0.0.1:1883"\n{settings}')
    data = read_edge_config(tmp_path / "edge.toml").data
    if name == "answers.jsonl":
        assert read_prompts(data).rows == [Completion("Q: 1+1? A:", " 2")]
        return
    if name == "talks.jsonl":
        (row,) = read_prompts(data).rows
        assert isinstance(row, Dialogue)
        assert [msgspec.to_builtins(message) for message in row.messages] == TALK
        return
    expected = [Row(TEXTS[0], 1), Row(TEXTS[1], 0)]
    if name == "ratings.csv":
        expected = [Row("One: a film", 1), Row("Three: no, never", 0)]
    assert sorted(read_examples(data, LABELS).rows, key=repr) == sorted(expected, key=repr)


def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "reviews.csv")
    (tmp_path / "edge.toml").write_text('name = "pi"\nbroker = "mqtt://h"\n[data]\npath = "reviews.csv"\n')
    monkeypatch.chdir(tmp_path)
    commands = [line for kind, block in BLOCKS if kind == "" for line in block.splitlines() if "covey-edge" in line]
    assert len(commands) == 3
    for command in commands:
        assert edge_cli.main(shlex.split(command)[1:]) == 0
        assert "a semicolon between columns" in capsys.readouterr().out


def test_the_summary_of_the_page_is_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "doubtful.csv").write_text("text,label\na,yes\na,yes\nb,yes\nschÃ¶n,yes\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert edge_cli.main(["data", "check", "--data", "doubtful.csv", "--labels", "no,yes"]) == 0
    shown = next(block for kind, block in BLOCKS if kind == "" and block.startswith("doubtful.csv"))
    assert capsys.readouterr().out == shown


def test_the_job_of_the_page_is_read(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(next(text for kind, text in BLOCKS if "[eval_data]" in text))
    job = read_job(tmp_path / "job.toml")
    assert job.eval_data is not None
    assert job.eval_data.text_field == "review"
