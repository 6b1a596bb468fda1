"""CSV as spreadsheets and other tools write it: recognised, or named with its line and what mends it."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.data.config import DataConfig
from edge_runtime.data.examples import Row, read_examples
from edge_runtime.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["no", "yes"]
ROWS = [Row("ein guter Film", 1), Row("a, b; c\td", 0), Row("it's", 1)]


def write(path: Path, content: str | bytes, encoding: str = "utf-8", **options: object) -> DataConfig:
    path.write_bytes(content.encode(encoding) if isinstance(content, str) else content)
    return msgspec.structs.replace(DataConfig(str(path)), **options)


def error_of(data: DataConfig) -> DataError:
    with pytest.raises(DataError) as caught:
        read_examples(data, LABELS)
    return caught.value


def table(delimiter: str, quote: str, header: bool = True) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quotechar=quote, lineterminator="\n")
    writer.writerows([["text", "label"]] if header else [])
    writer.writerows([row.text, LABELS[row.label]] for row in ROWS)
    return out.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("quote", ['"', "'"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_quote_line_end_and_encoding_are_recognised(
    tmp_path: Path, delimiter: str, quote: str, end: str, encoding: str
) -> None:
    content = table(delimiter, quote).replace("\n", end)
    found = read_examples(write(tmp_path / "a.csv", content, encoding), LABELS)
    assert found.rows == ROWS
    assert found.lines == [2, 3, 4]
    assert any("separates its columns" in note for note in found.notes) == (delimiter != ",")
    assert any("quotes are single" in note for note in found.notes) == (quote == "'")
    assert any("UTF" in note for note in found.notes) == (encoding not in ("utf-8", "utf-8-sig"))


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_line_that_excel_reads_is_read(tmp_path: Path, line: str) -> None:
    found = read_examples(write(tmp_path / "a.csv", f"{line}\r\ntext;label\r\nfine, really;yes\r\n"), LABELS)
    assert (found.rows, found.lines) == ([Row("fine, really", 1)], [3])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_file_without_header_is_named_with_the_option_that_mends_it(
    tmp_path: Path, delimiter: str, quote: str
) -> None:
    data = write(tmp_path / "a.csv", table(delimiter, quote, header=False))
    error = error_of(data)
    assert "has no header line: line 1 is a row already" in error.what
    assert 'columns = ["text", "label"]' in error.hint
    assert "--columns text,label" in error.hint
    assert error.facts == "it has no header; line 1 is a row"
    found = read_examples(msgspec.structs.replace(data, columns=["text", "label"]), LABELS)
    assert found.rows == ROWS
    assert found.lines == [1, 2, 3]


def test_quotes_within_texts_are_no_reason_to_take_single_quotes(tmp_path: Path) -> None:
    for line in ("'Tis good", "'Tis good, he's right", "rock 'n' roll"):
        content = f"text,label\n{line if ',' not in line else chr(34) + line + chr(34)},yes\n"
        found = read_examples(write(tmp_path / "a.csv", content), LABELS)
        assert found.rows == [Row(line, 1)]
        assert found.notes == []
    told = write(tmp_path / "a.csv", "text,label\n'a\nb',yes\n", quote="'")
    assert read_examples(told, LABELS).rows == [Row("a\nb", 1)]


@pytest.mark.parametrize("lines_before", [0, 1, 997])
@pytest.mark.parametrize("lines_after", [0, 1, 500])
def test_a_forgotten_quote_is_named_by_the_line_in_which_it_opened(
    tmp_path: Path, lines_before: int, lines_after: int
) -> None:
    before, after = "a film,yes\n" * lines_before, "a film,no\n" * lines_after
    line = lines_before + 2
    for forgotten, opened in (
        ('"forgotten,no\n', line),
        ('yes,"forgotten\n', line),
        ('"one\ntwo",yes\n"forgotten,no\n', line + 2),
        ('"one\n""two""",yes,"three\n', line + 1),
    ):
        error = error_of(write(tmp_path / "a.csv", f"text,label\n{before}{forgotten}{after}"))
        assert f"line {opened}: a quote" in error.what
        assert f"line {opened}" in error.facts
    error = error_of(write(tmp_path / "a.csv", f'text,label\n{before}"forgotten,no\n{after}"good, film",yes\n'))
    assert f"line {line}: a quote" in error.what
    error = error_of(write(tmp_path / "a.csv", f'text,label\n{before}"he said "wow" twice",no\n{after}'))
    assert f"line {line}: a quote" in error.what
    assert 'twice ("")' in error.hint


@pytest.mark.parametrize("characters", [150_000, 2_000_000])
def test_a_long_text_is_no_fault(tmp_path: Path, characters: int) -> None:
    text = ("very long film " * (characters // 15 + 1))[:characters].strip()
    found = read_examples(write(tmp_path / "a.csv", f'text,label\n"{text}",yes\nshort,no\n'), LABELS)
    assert found.rows == [Row(text, 1), Row("short", 0)]


def test_byte_and_line_of_another_encoding_are_those_of_the_file(tmp_path: Path) -> None:
    lines = [b"text,label", *(b"the film %d,yes" % index for index in range(9999))]
    lines[6999] = b"the film\x92s good,yes"
    for mark, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"", b"\r")):
        data = write(tmp_path / "a.csv", mark + end.join(lines))
        error = error_of(data)
        at = (mark + end.join(lines)).index(b"\x92")
        assert f"line 7000 is not UTF-8 at byte {at} of the file (0x92); in Windows-1252" in error.what
        assert 'encoding = "windows-1252"' in error.hint
        assert error.facts == "line 7000 is not UTF-8"
    found = read_examples(msgspec.structs.replace(data, encoding="windows-1252"), LABELS)
    assert found.rows[6998] == Row("the film\u2019s good", 1)


def test_wrong_bytes_of_wide_encodings_are_named_too(tmp_path: Path) -> None:
    content = "text,label\na film,yes\n".encode("utf-16")
    error = error_of(write(tmp_path / "a.csv", content + b"a"))
    assert f"line 3 is not utf-16-le at byte {len(content)} of the file" in error.what
    with pytest.raises(ConfigError, match="encoding is 'klingon'"):
        read_examples(DataConfig(str(tmp_path / "a.csv"), encoding="klingon"), LABELS)


def test_files_that_were_put_together(tmp_path: Path) -> None:
    """A byte order mark and a header in the middle."""
    part = '\ufefftext,label\n"a film",yes\n'
    found = read_examples(write(tmp_path / "a.csv", part * 2), LABELS)
    assert found.rows == [Row("a film", 1)] * 2
    assert [(line, fault.what) for line, fault in found.skipped] == [(3, "it repeats the header")]
    assert found.notes == ["byte order marks within the file are ignored, the first in line 3"]
    line = '\ufeff{"text": "a film", "label": "yes"}\n'
    found = read_examples(write(tmp_path / "a.jsonl", line * 3), LABELS)
    assert found.rows == [Row("a film", 1)] * 3
    assert found.notes == ["byte order marks within the file are ignored, the first in line 2"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04 anything", "an Excel workbook or a zip archive"),
        (b"\xd0\xcf\x11\xe0 anything", "an old Excel workbook"),
        (b"\x1f\x8b anything", "compressed"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a Git LFS pointer"),
        (b'{"text": "a film", "label": "yes"}\n', "is JSON, not CSV"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    assert what in error_of(write(tmp_path / "a.csv", content)).what


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=30).filter(
    str.strip
)


@given(texts=st.lists(CELLS, min_size=1, max_size=8), delimiter=st.sampled_from([",", ";", "\t"]))
def test_what_the_csv_module_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], delimiter: str
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([["text", "label"], *([text, "yes"] for text in texts)])
    assert [row.text for row in read_examples(DataConfig(str(path)), LABELS).rows] == texts
