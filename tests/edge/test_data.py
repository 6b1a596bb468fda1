"""Private rows: every wrong line is named; batches pass over all rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.data.examples import Row, label_counts, read_rows
from edge_runtime.data.order import batch_indices
from edge_runtime.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

LABELS = ["bad", "good"]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_json_lines_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    json_file = write(
        tmp_path / "a.jsonl", '{"text": "fine, \\"really\\"", "label": "good"}\n\n{"text": "no", "label": 0}\n'
    )
    csv_file = write(tmp_path / "a.csv", 'label,text\ngood,"fine, ""really"""\n0,no\n')
    expected = [Row('fine, "really"', 1), Row("no", 0)]
    assert read_rows(json_file, LABELS) == read_rows(csv_file, LABELS) == expected
    assert label_counts(expected, LABELS) == {"bad": 1, "good": 1}


def test_other_field_names_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\ufeffreview,verdict\nfine,good\n")
    assert read_rows(path, LABELS, "review", "verdict") == [Row("fine", 1)]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{not json}", "not JSON"),
        ('["a"]', "not a JSON object but list"),
        ('{"label": "good"}', "no 'text'"),
        ('{"text": "a"}', "no 'label'"),
        ('{"text": null, "label": "good"}', "no 'text'"),
        ('{"text": 5, "label": "good"}', "not text but int"),
        ('{"text": "  ", "label": "good"}', "is empty"),
        ('{"text": "a", "label": "ugly"}', "'ugly', not one of bad, good"),
        ('{"text": "a", "label": 2}', "2, not one of"),
        ('{"text": "a", "label": true}', "True, not one of"),
        ('{"text": "a", "label": -1}', "-1, not one of"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "a", "label": "good"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2") as caught:
        read_rows(path, LABELS)
    assert problem in caught.value.what
    assert "1 of 2 rows" in caught.value.what


def test_many_wrong_lines_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "", "label": 0}\n' * 20)
    with pytest.raises(DataError, match=r"20 of 20 rows are wrong[\s\S]*line 5[\s\S]*and 15 more") as caught:
        read_rows(path, LABELS)
    assert "line 6" not in caught.value.what


def test_csv_with_too_many_values_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3: more values than columns"):
        read_rows(write(tmp_path / "a.csv", "text,label\na,good\nb,good,extra\n"), LABELS)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_rows(tmp_path / "missing.jsonl", LABELS)
    with pytest.raises(DataError, match="unknown kind"):
        read_rows(write(tmp_path / "a.txt", "x"), LABELS)
    with pytest.raises(DataError, match="no rows"):
        read_rows(write(tmp_path / "empty.jsonl", "\n\n"), LABELS)
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9", "label": 0}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        read_rows(tmp_path / "latin.jsonl", LABELS)


@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=1, max_size=20
    )
)
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": "bad"}) + "\n" for text in texts))
    assert [row.text for row in read_rows(path, LABELS)] == texts


@given(n_rows=st.integers(1, 50), batch_size=st.integers(1, 60), epochs=st.integers(1, 4))
def test_every_epoch_visits_each_row_once(n_rows: int, batch_size: int, epochs: int) -> None:
    size = min(n_rows, batch_size)
    n_batches = -(-n_rows * epochs // size)
    seen = [i for b in range(n_batches) for i in batch_indices(n_rows, batch_size, b, lambda epoch: epoch)]
    for epoch in range(epochs):
        assert sorted(seen[epoch * n_rows : (epoch + 1) * n_rows]) == list(range(n_rows))


def test_epochs_have_orders_of_their_own_and_batches_repeat_exactly() -> None:
    def batch(number: int, seed: int = 0) -> list[int]:
        return batch_indices(100, 100, number, lambda epoch: seed * 1000 + epoch)

    assert batch(0) != batch(1)
    assert batch(3) == batch(3)
    assert batch(0, seed=1) != batch(0, seed=2)
