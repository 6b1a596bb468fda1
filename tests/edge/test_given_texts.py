"""Texts on the command line, or one a line on standard input: what is taken, and what is refused."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from edge_runtime.errors import DataError
from edge_runtime.files.given_texts import given_texts


def standard_input(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(data)))


def test_texts_of_the_command_line_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, b"never read\n")
    assert given_texts(["a", "-", " b "]) == ["a", "-", " b "]


def test_lines_of_standard_input_are_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    standard_input(monkeypatch, "\ufeffcafé\r\n\n  \nsecond".encode())
    assert given_texts(["-"]) == ["café", "second"]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\v", "\f", "\r"])
def test_only_line_feeds_end_a_text(monkeypatch: pytest.MonkeyPatch, inside: str) -> None:
    standard_input(monkeypatch, f"one{inside}text\r\nanother\r\n".encode())
    assert given_texts(["-"]) == [f"one{inside}text", "another"]


@pytest.mark.parametrize(("data", "said"), [(b"\n \n", "no texts on standard input"), (b"\xff\n", "not in UTF-8")])
def test_what_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, data: bytes, said: str) -> None:
    standard_input(monkeypatch, data)
    with pytest.raises(DataError, match=said):
        given_texts(["-"])


def test_a_word_of_the_command_line_in_another_encoding_is_named() -> None:
    with pytest.raises(DataError, match="not in UTF-8"):
        given_texts(["caf\udce9"])
