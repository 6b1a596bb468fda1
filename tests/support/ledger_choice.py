"""`pytest --ledger postgresql`: every ledger that a test opens in its own process is in PostgreSQL instead of a file.

So the same tests hold for both. What is about SQLite's file itself is left out then: a file that is damaged, copied,
removed or older.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ABOUT_FILES = {
    "test_backup": "a backup copies the file",
    "test_damaged_ledger": "it damages the file",
    "test_ledger_upgrade": "no ledger in PostgreSQL is of the old versions",
    "test_ledger_address": "it makes both kinds",
    "test_postgres_hangs": "it has a database of its own",
    "test_postgres_ledger": "it has a database of its own",
    "test_shared_clock": "it has a database of its own",
    "test_texts_with_nul": "it makes both kinds",
    **dict.fromkeys(
        (
            "test_evaluation_threads",
            "test_flash",
            "test_flash_jetson",
            "test_flash_jetson_refused",
            "test_quantised_advice",
            "test_ray_evaluation",
            "test_ray_replay",
        ),
        "it takes long and opens no ledger",
    ),
}
"""Files of tests that are left out, and why."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ledger", choices=("sqlite", "postgresql"), default="sqlite", help="where ledgers are")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--ledger") == "sqlite":
        return
    for item in items:
        reason = ABOUT_FILES.get(item.path.stem)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
        if marker := item.get_closest_marker("sqlite"):
            item.add_marker(pytest.mark.skip(reason=marker.args[0]))


@pytest.fixture(scope="session", autouse=True)
def ledgers_in_postgres(request: pytest.FixtureRequest) -> Iterator[None]:
    """Put ledgers into PostgreSQL where the option says so, each path into a schema of its own."""
    if request.config.getoption("--ledger") == "sqlite":
        yield
        return
    from postgres import running_postgres

    with running_postgres() as server, pytest.MonkeyPatch.context() as patch:
        made: dict[Path, str] = {}

        def address(path: Path) -> str:
            whole = path.resolve()
            if whole not in made:
                made[whole] = server.schema_for(whole)
            return made[whole]

        for module in ("server.storage.ledger", "server.serving.stores"):
            patch.setattr(f"{module}.address_beside", address)
        # A command that asks whether there is a ledger must not be told of one that nobody has made.
        patch.setattr("server.storage.ledger_address.address_beside", lambda path: made.get(path.resolve()))
        yield
