"""docs/configuration.md has every flag of ``covey serve`` and every field of edge.toml and job.toml, and no other."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from parsers import parser_of
from repository import ROOT

from edge_runtime.agent.config import EdgeConfig
from server.job.job import Job
from server.job.schedule import Schedule

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (ROOT / "docs" / "configuration.md").read_text("utf-8")
FILES: dict[str, tuple[Any, ...]] = {"edge.toml": (EdgeConfig,), "job.toml": (Job, Schedule)}


def part(heading: str) -> str:
    """Return the part of the page whose heading of the second level begins so."""
    (found,) = [text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE) if text.startswith(f"`{heading}`")]
    return found


def first_cells(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("| `"):
            yield line.split(" | ")[0]


def options(command: str) -> set[str]:
    """Return the long options of a command of ``covey`` that its help shows."""
    (commands,) = [action for action in parser_of("covey")._actions if isinstance(action, argparse._SubParsersAction)]
    shown = [action for action in commands.choices[command]._actions if action.help != argparse.SUPPRESS]
    return {flag for action in shown for flag in action.option_strings if flag.startswith("--")} - {"--help"}


def test_the_page_has_every_flag_of_serve_and_no_other() -> None:
    written = [flag for cell in first_cells(part("covey serve")) for flag in re.findall(r"--[a-z-]+", cell)]
    assert sorted(written) == sorted(options("serve"))
    assert options("run") - options("serve") == {"--bundle", "--job"}


def fields(kind: Any) -> Iterator[str]:
    """Yield the names of a struct's fields, and those of the structs in them."""
    if isinstance(kind, msgspec.inspect.StructType):
        for field in kind.fields:
            yield field.encode_name
            yield from fields(field.type)
    elif isinstance(kind, msgspec.inspect.UnionType):
        for one in kind.types:
            yield from fields(one)


@pytest.mark.parametrize("file", FILES)
def test_the_page_has_every_field_of_a_file_and_no_other(file: str) -> None:
    text = part(file)
    known = {name for kind in FILES[file] for name in fields(msgspec.inspect.type_info(kind))}

    def is_there(name: str) -> bool:
        return re.search(rf"`(\[(\w+\.)?)?{name}\]?`|^#? ?(\[\w*{name}\]|{name} = )", text, re.MULTILINE) is not None

    assert {name for name in known if not is_there(name)} == set()
    written = {name for cell in first_cells(text) for name in re.findall(r"`\[?(?:\w+\.)?(\w+)\]?`", cell)}
    assert written - known == set()
