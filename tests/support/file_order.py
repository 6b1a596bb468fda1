"""The order of the files of tests: those that wait for processes run beside those that compute.

Tests of tests/fleet, benchmarks and hil mostly wait for each other's processes; the others mostly compute. Files of
both kinds take turns, and of each kind those with slow tests come first, so that the last minutes are not one long
file. The order of tests within a file stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

WAITING = ("fleet", "benchmarks", "hil")
"""Folders whose tests mostly wait."""


def taking_turns(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the names of both, each in its order and spread evenly over the whole."""
    places = [((index + 0.5) / len(names), name) for names in (first, second) for index, name in enumerate(names)]
    return [name for _, name in sorted(places, key=lambda place: place[0])]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files."""
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(str(item.path), []).append(item)
    slow = [file for file, own in by_file.items() if any(item.get_closest_marker("slow") for item in own)]
    in_order = slow + [file for file in by_file if file not in set(slow)]
    waits = {file for file, own in by_file.items() if own[0].path.parent.name in WAITING}
    files = taking_turns([file for file in in_order if file in waits], [file for file in in_order if file not in waits])
    items[:] = [item for file in files for item in by_file[file]]
