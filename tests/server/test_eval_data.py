"""``[eval_data]`` in job.toml: held-out rows are read as they are written, with the settings of [data] in edge.toml."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_runtime.bundle.folder import Bundle
from edge_runtime.data.config import RowFormat
from edge_runtime.data.rows import EncodedRows
from edge_runtime.errors import ConfigError, DataError
from server.job.job import Job, job_of, read_job
from server.serving.loaded_job import load, load_job

JOB = 'name = "job"\neval_file = "{file}"\n{more}'


def labels_of(folder: Path, bundle: Bundle, file: str, more: str = "") -> list[int]:
    (folder / "job.toml").write_text(JOB.format(file=file, more=more))
    fitted, opened = load_job(folder / "job.toml", bundle.path)
    rows = load(fitted, opened, threads=1).rows
    assert isinstance(rows, EncodedRows)
    return list(rows.labels)


def test_a_table_with_other_names_labels_and_encoding(tmp_path: Path, tiny_bundle: Bundle) -> None:
    bad, good, *_ = tiny_bundle.manifest.task.labels
    (tmp_path / "a.csv").write_bytes("5.0|~caf\xe9~\n1.0|no\n".encode("windows-1252"))
    more = (
        '[eval_data]\nencoding = "windows-1252"\ndelimiter = "|"\nquote = "~"\ncolumns = ["stars", "review"]\n'
        f'text_field = "review"\nlabel_field = "stars"\nlabel_names = {{ "5.0" = "{good}", "1.0" = "{bad}" }}\n'
    )
    assert labels_of(tmp_path, tiny_bundle, "a.csv", more) == [1, 0]
    with pytest.raises(DataError):
        labels_of(tmp_path, tiny_bundle, "a.csv")


def test_a_directory_is_held_out_too(tmp_path: Path, tiny_bundle: Bundle) -> None:
    for index, label in enumerate(tiny_bundle.manifest.task.labels):
        (tmp_path / "rows" / label).mkdir(parents=True)
        (tmp_path / "rows" / label / f"{index}.txt").write_text("a film")
    assert sorted(labels_of(tmp_path, tiny_bundle, "rows")) == list(range(len(tiny_bundle.manifest.task.labels)))


@pytest.mark.parametrize(
    ("more", "what"), [('text = "a"', "text"), ('delimiter = "::"', "delimiter is '::'"), ('path = "b"', "path")]
)
def test_a_wrong_setting_is_named(tmp_path: Path, more: str, what: str) -> None:
    (tmp_path / "job.toml").write_text(JOB.format(file="a.csv", more=f"[eval_data]\n{more}\n"))
    with pytest.raises(ConfigError, match=what):
        read_job(tmp_path / "job.toml")


def test_a_job_of_before_is_the_same_job(tmp_path: Path) -> None:
    """The ledger compares a resumed job with what it has: without [eval_data] it is None there, like a lacking key."""
    job = job_of({"name": "job", "eval_file": "/a.csv"})
    table = msgspec.to_builtins(job)
    assert table.pop("eval_data") is None
    assert msgspec.convert(table, Job) == job
    before = {"name": "job", "eval_file": "/a.csv", "eval_data": {"text_field": "review"}}
    assert "messages_field" not in msgspec.to_builtins(job_of(before))["eval_data"]
    with_settings = job_of({"name": "job", "eval_file": "/a.csv", "eval_data": {"text_field": "review"}})
    assert msgspec.convert(msgspec.to_builtins(with_settings), Job).eval_data == RowFormat(text_field="review")
