"""The PostgreSQL of a file of tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from postgres import Postgres


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    from postgres import running_postgres

    with running_postgres() as server:
        yield server
