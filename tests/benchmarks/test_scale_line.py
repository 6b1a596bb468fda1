"""The line of what grows with a fleet: the keys of all its parts, and a part that is not there."""

from __future__ import annotations

import inspect
import json

import pytest

from benchmarks import scale


def test_the_last_line_has_the_keys_of_all_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scale, "PARTS", {"one": lambda: {"a": 1}, "other": lambda: {"b": 2.5}})
    scale.main(["--parts", "one,other"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["a"], line["b"], line["parts"]) == (1, 2.5, "one,other")
    assert "commit" in line


def test_quick_sizes_are_given_to_every_part(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(scale.QUICK) == set(scale.PARTS)
    for name, part in scale.PARTS.items():
        inspect.signature(part).bind(**scale.QUICK[name])
    monkeypatch.setattr(scale, "PARTS", {"closing": lambda parameters: {"a": parameters}})
    scale.main(["--parts", "closing", "--quick"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["a"] == scale.QUICK["closing"]["parameters"]
    assert line["quick"] is True


def test_a_part_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        scale.main(["--parts", "swarm,moon"])
    assert "there is no part moon; there are swarm, costs" in capsys.readouterr().err
