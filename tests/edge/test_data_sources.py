"""The same rows in every kind of file that people have are the same rows; any other bytes are a clear error."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.data.config import DataConfig
from edge_runtime.data.examples import Completion, Row, read_examples, read_prompts
from edge_runtime.errors import DataError

LABELS = ["bad", "good"]
MARK = b"\xef\xbb\xbf"
PLACE = re.compile(
    r"(?:line|row|file|object)s? \d+|no rows|cannot be read|not text|damaged|unknown kind|header|no end|JSON, not CSV"
)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def as_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def as_json_array(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "array.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    return path


def as_one_line(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "line.json"
    path.write_text(json.dumps(rows), "utf-8")
    return path


def as_objects(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "objects.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows), "utf-8")
    return path


def as_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    path = path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = path / "rows.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


FILES = [as_json_lines, as_json_array, as_one_line, as_objects, as_csv, as_parquet]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff\r"), min_size=1, max_size=30).filter(
    lambda text: text.strip() and text == text.strip("\n")
)


@FAST
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from(LABELS)), min_size=1, max_size=5))
def test_the_same_rows_in_every_kind_of_file(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    records = [{"text": text, "label": label} for text, label in rows]
    expected = [Row(text, LABELS.index(label)) for text, label in rows]
    for write in FILES:
        found = read_examples(DataConfig(str(write(tmp_path, records))), LABELS)
        assert found.rows == expected, write.__name__
        assert found.skipped == []


def as_folders(path: Path, rows: list[tuple[str, str]], encoding: str = "utf-8", end: str = "\n") -> Path:
    for number, (text, label) in enumerate(rows):
        (path / label).mkdir(parents=True, exist_ok=True)
        raw = text.replace("\n", end).encode(encoding)
        (path / label / f"{number:04d}.txt").write_bytes(raw)
    return path


@FAST
@given(rows=st.lists(st.tuples(TEXTS, st.sampled_from(LABELS)), min_size=1, max_size=5), marked=st.booleans())
def test_the_same_rows_in_a_directory_by_label(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], marked: bool
) -> None:
    folder = as_folders(tmp_path_factory.mktemp("rows"), rows, "utf-8-sig" if marked else "utf-8")
    found = read_examples(DataConfig(str(folder)), LABELS)
    expected = [Row(text, LABELS.index(label)) for text, label in rows]
    assert sorted(found.rows, key=repr) == sorted(expected, key=repr)


@FAST
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_the_same_prompts_in_every_kind_of_file(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    records = [{"prompt": prompt, "completion": completion} for prompt, completion in rows]
    for write in FILES:
        found = read_prompts(DataConfig(str(write(tmp_path, records))))
        assert found.rows == [Completion(*row) for row in rows], write.__name__


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "windows-1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_directory_in_every_encoding(tmp_path: Path, encoding: str, end: str) -> None:
    folder = as_folders(tmp_path, [("a café\nhere\n", "good"), ("no", "bad")], encoding, end)
    data = DataConfig(str(folder), encoding="windows-1252" if encoding == "windows-1252" else "auto")
    assert read_examples(data, LABELS).rows == [Row("no", 0), Row("a café\nhere", 1)]


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_array_in_every_encoding(tmp_path: Path, mark: bytes, end: bytes, encoding: str) -> None:
    rows = [{"text": "a café", "label": "good"}, {"text": "no", "label": 0}]
    text = json.dumps(rows, ensure_ascii=False, indent=2).replace("\n", end.decode())
    raw = text.encode(encoding)
    (tmp_path / "a.json").write_bytes(raw if encoding == "utf-16" else mark + raw)
    found = read_examples(DataConfig(str(tmp_path / "a.json")), LABELS)
    assert found.rows == [Row("a café", 1), Row("no", 0)]
    assert found.form == "one JSON array"
    assert [found.places.one(number) for number in found.lines] == ["object 1 (line 2)", "object 2 (line 6)"]


@pytest.mark.parametrize(
    ("text", "what", "facts"),
    [
        ('[{"text": "a", "label": 1},\n {"text": "b" "label": 1}]', "line 2 is not JSON", "line 2 is not JSON"),
        ('[\n{"text": "a", "label": 1},\n', "begins in line 1 has no end", "its array, which begins in line 1, has no"),
        ('[{"text": "a", "label": 1}]\nmore', "line 2 follows the end of the array", "line 2 follows the end"),
        ('[\n{"text": "a", "label": ' + "[" * 99_999, "line 2", "line 2"),
        ('[{"text": "a", "label": 1},\n{"text": "", "label": 1}]', "object 2 (line 2): 'text' is empty", "in object 2"),
        ('[{"text": "a", "label": 1},\n["b", 1]]', "object 2 (line 2): not a JSON object but list", "in object 2"),
        ('[{"text": "a", "text": "b", "label": 1}]', "object 1 (line 1): 'text' comes twice", "in object 1"),
    ],
)
def test_what_is_wrong_in_an_array_is_named(tmp_path: Path, text: str, what: str, facts: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(tmp_path / "a.json")), LABELS)
    assert what in caught.value.what
    assert facts in caught.value.facts


def test_what_is_wrong_in_a_directory_is_named_by_file_and_leaves_the_device_as_a_number(tmp_path: Path) -> None:
    folder = as_folders(tmp_path, [("fine", "good"), (" ", "good"), ("fine", "Bad")])
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(folder)), LABELS)
    assert "good/0001.txt: 'text' is empty" in caught.value.what
    assert "Bad/0002.txt: 'label' is 'Bad'" in caught.value.what
    assert caught.value.facts == "2 of 3 rows are wrong, the first in files 1, 3"
    (folder / "good" / "0001.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(folder), label_names={"Bad": "bad"}), LABELS)
    assert "good/0001.txt: line 1 is not UTF-8 at byte 3" in caught.value.what
    assert caught.value.facts == "file 3: line 1 is not UTF-8"


def test_a_directory_says_what_it_leaves_out(tmp_path: Path) -> None:
    folder = as_folders(tmp_path, [("fine", "good"), ("deeper", "good/2024"), ("bad\0", "bad")])
    (folder / "README.txt").write_text("not a row")
    (folder / "good" / "photo.png").write_bytes(b"\x89PNG")
    (folder / ".hidden").mkdir()
    (folder / "good" / "loop").symlink_to(folder / "good")
    found = read_examples(DataConfig(str(folder)), LABELS)
    assert [row.text for row in found.rows] == ["fine", "deeper"]
    assert [(found.places.one(number), fault.kind) for number, fault in found.skipped] == [("bad/0002.txt", "damage")]
    assert any("1 file beside the folders" in note for note in found.notes)
    assert any("1 file of other kinds" in note for note in found.notes)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no rows"):
        read_examples(DataConfig(str(tmp_path / "empty")), LABELS)


def test_a_name_of_any_bytes_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / os.fsdecode(b"\xff.txt")).write_text(" ")
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(tmp_path)), LABELS)
    assert "good/\ufffd.txt" in caught.value.what


def test_columns_of_a_parquet_file(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    text = arrow.array(["a", "b", None] * 1000).dictionary_encode()
    table = arrow.table({"Text": text, "label": arrow.array([0, 1, 1] * 1000), "other": arrow.array([b"\xff"] * 3000)})
    parquet.write_table(table, path, row_group_size=700)
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(path)), LABELS)
    assert "has no column 'text'" in caught.value.what
    assert "--text-field Text" in caught.value.hint
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(path), text_field="Text"), LABELS)
    assert "1000 of 3000 rows are wrong" in caught.value.what
    assert "row 3: no 'Text'" in caught.value.what
    assert caught.value.facts == "1000 of 3000 rows are wrong, the first in rows 3, 6, 9, 12, 15"
    parquet.write_table(table.slice(0, 2), path)
    found = read_examples(DataConfig(str(path), text_field="Text"), LABELS)
    assert found.rows == [Row("a", 0), Row("b", 1)]
    assert found.form == "Parquet, 2 rows"


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=re.escape("pip install 'covey[parquet]'")) as caught:
        read_examples(DataConfig(str(tmp_path / "a.parquet")), LABELS)
    assert "pyarrow is not installed" in caught.value.facts


def read_or_refuse(path: Path) -> DataError | None:
    """Read rows, or return the error, which names a place."""
    refused = None
    try:
        read_examples(DataConfig(str(path)), LABELS)
    except DataError as error:
        refused = error
    assert refused is None or PLACE.search(refused.facts), refused
    return refused


PIECES = [
    b"[",
    b"]",
    b"{",
    b"}",
    b",",
    b"\n",
    b"\r\n",
    b'"',
    b"text",
    b"label",
    b"good",
    b'{"text": "a", "label": "good"}',
]
PIECES += [
    b"\0",
    MARK,
    b"\xff\xfe",
    b"\xff",
    b"\xed\xa0\xbd",
    b"\xf0\x9f",
    b"null",
    b"1e999",
    b"\\ud83d",
    b"text,label\n",
    b";",
]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(PIECES), max_size=25).map(b"".join)),
    suffix=st.sampled_from(["json", "jsonl", "csv", "tsv", "txt"]),
)
def test_any_bytes_are_rows_or_a_clear_error(tmp_path: Path, raw: bytes, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(raw)
    read_or_refuse(path)
    (tmp_path / "folder" / "good").mkdir(parents=True, exist_ok=True)
    (tmp_path / "folder" / "good" / "a.txt").write_bytes(raw)
    read_or_refuse(tmp_path / "folder")


@pytest.fixture(scope="module")
def parquet_bytes() -> bytes:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    target = io.BytesIO()
    parquet.write_table(arrow.table({"text": ["a film"] * 50, "label": ["good"] * 50}), target)
    return target.getvalue()


@FAST
@given(data=st.data())
def test_a_damaged_parquet_file_is_a_clear_error(tmp_path: Path, parquet_bytes: bytes, data: st.DataObject) -> None:
    path = tmp_path / "a.parquet"
    cut = data.draw(st.integers(0, len(parquet_bytes) - 1))
    path.write_bytes(parquet_bytes[:cut])
    assert read_or_refuse(path) is not None
    path.write_bytes(data.draw(st.binary(max_size=100)))
    assert read_or_refuse(path) is not None


def test_a_path_to_nothing_is_an_error(tmp_path: Path) -> None:
    for name in ("reviews", "a.csv", "a.json", "a.parquet"):
        with pytest.raises(DataError) as caught:
            read_examples(DataConfig(str(tmp_path / name)), LABELS)
        assert caught.value.facts == "its file cannot be read"


@pytest.mark.parametrize(
    ("written", "content", "mended"),
    [
        ({"delimiter": ";"}, "text,label\nfine,good\n", {"delimiter": ","}),
        ({"delimiter": ","}, "text\tlabel\nfine\tgood\n", {"delimiter": "tab"}),
        ({"quote": '"'}, "'text','label'\n'fi,ne','good'\n", {"quote": "'"}),
    ],
)
def test_a_wrong_setting_is_named_with_the_right_one(
    tmp_path: Path, written: dict[str, str], content: str, mended: dict[str, str]
) -> None:
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_examples(DataConfig(str(path), **written), LABELS)
    ((name, value),) = mended.items()
    assert f'set {name} = "{value}" under [data]' in caught.value.hint
    right = msgspec.structs.replace(DataConfig(str(path), **written), **mended)
    assert len(read_examples(right, LABELS).rows) == 1


def test_a_header_under_columns_is_left_out_and_said(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,good\n")
    found = read_examples(DataConfig(str(tmp_path / "a.csv"), columns=["text", "label"]), LABELS)
    assert found.rows == [Row("fine", 1)]
    assert [(number, fault.what) for number, fault in found.skipped] == [
        (1, "it is a header, with the names that columns has: the file needs no columns")
    ]
