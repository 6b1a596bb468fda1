"""What a device says with NUL in it stops no server: both ledgers keep it, and older ledgers with it are upgraded."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from old_ledgers import as_version_11, write_old_ledger
from postgres import running_postgres
from profiles import PROFILE
from sqlalchemy import String, text

from edge_runtime.protocol.messages import decode_message, encode_message
from edge_runtime.protocol.presence import Birth, Capability, DeviceState
from server.storage import device_queries, registry_queries
from server.storage.columns import Words
from server.storage.ledger import Ledger, Waiting
from server.storage.ledger_address import LEDGER_FILE, keep_address
from server.storage.tables import METADATA

REPLACED = "\N{REPLACEMENT CHARACTER}"
NUL, SHOWN = "a\x00b", f"a{REPLACED}b"
TEXTS = st.text(st.sampled_from('\x00\\u0"ab'), max_size=6)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    root = tmp_path_factory.mktemp("ledger")
    if request.param == "sqlite":
        opened = Ledger(root / LEDGER_FILE)
        yield opened
        opened.close()
        return
    with running_postgres() as database:
        keep_address(root, database.schema_for(root))
        opened = Ledger(root / LEDGER_FILE, waiting=Waiting(0.0, lambda _seconds: None))
        yield opened
        opened.close()


def birth_of(words: str) -> Birth:
    """Return a birth as it comes over the network, with these words wherever a device writes its own."""
    birth = Birth(
        device="pi",
        boot_id=words,
        connection=1,
        epoch="e",
        covey_version=words,
        python_version=words,
        machine=words,
        runtimes={words: words},
        methods=[words],
        rows=None,
        bundle_sha256=None,
        adapter_sha256=None,
        capability=Capability("forward-only", None, None),
    )
    return decode_message(encode_message(birth), Birth)


@given(TEXTS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_of_a_device_are_kept(ledger: Ledger, words: str) -> None:
    state = DeviceState(state="online", boot_id=words, ineligible=words)
    state = decode_message(encode_message(state), DeviceState)
    ledger.device_born("f", "pi", msgspec.json.encode(birth_of(words)).decode())
    ledger.device_state("f", "pi", state.state, state.ineligible)
    ledger.device_reason("f", "pi", words)
    ledger.device_quarantined("f", "pi", words)
    profile = msgspec.structs.replace(PROFILE, facts=msgspec.structs.replace(PROFILE.facts, model=words, os=words))
    ledger.profile_received("f", "pi", json.dumps(words), profile, [words])
    found = registry_queries.find_device(ledger, "f", "pi")
    assert found is not None
    assert (found.reason or "").replace("\x00", REPLACED) == words.replace("\x00", REPLACED)
    assert device_queries.newest_profile(ledger, "f", "pi") is not None
    assert device_queries.held_out_of(ledger, "f") == {}


@given(TEXTS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_words_of_who_looks_are_an_answer(ledger: Ledger, words: str) -> None:
    """The pages of the API and of the dashboard hand on what stands in an address, as %00."""
    ledger.device_born("f", "pi", msgspec.json.encode(birth_of("x")).decode())
    wanted = registry_queries.DeviceFilter(text=words, state=words, tag=words, board=words, version=words)
    assert registry_queries.count_devices(ledger, "f", wanted) in (0, 1)
    registry_queries.devices_after(ledger, "f", wanted, words, 10)
    registry_queries.find_device(ledger, "f", words)
    device_queries.profiles_of(ledger, words)


def test_every_text_of_the_ledger_is_of_the_kind_that_postgresql_takes() -> None:
    kinds = {type(column.type) for table in METADATA.tables.values() for column in table.columns}
    assert Words in kinds
    assert not [kind for kind in kinds if issubclass(kind, String)]


# -- older ledgers -----------------------------------------------------------------------------------------------------


def said(covey_version: str, tags: list[str]) -> str:
    return json.dumps({"covey_version": covey_version, "tags": tags})


def test_an_older_file_with_such_a_birth_is_upgraded(tmp_path: Path) -> None:
    path = write_old_ledger(tmp_path / "state" / LEDGER_FILE, 11)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE devices SET birth = ?", (said(NUL, [NUL]),))
        count, fleet = connection.execute("SELECT count(*), min(fleet) FROM devices").fetchone()
        assert count > 0
    connection.close()
    ledger = Ledger(path)
    assert registry_queries.versions_of(ledger, fleet) == [NUL]
    assert registry_queries.count_devices(ledger, fleet, registry_queries.DeviceFilter(version=NUL, tag=NUL)) > 0
    ledger.close()


def test_an_older_ledger_in_postgresql_with_such_a_profile_is_upgraded(tmp_path: Path) -> None:
    """Profiles are bytes, which PostgreSQL takes with anything in them."""
    with running_postgres() as database:
        keep_address(tmp_path, database.schema_for(tmp_path))
        waiting = Waiting(0.0, lambda _seconds: None)
        ledger = Ledger(tmp_path / LEDGER_FILE, waiting=waiting)
        ledger.device_born("f", "pi", "{}")
        ledger.profile_received("f", "pi", "0" * 64, PROFILE, [])
        profile: dict[str, Any] = msgspec.to_builtins(PROFILE)
        profile["facts"]["board"] = NUL
        as_version_11(ledger)
        ledger.database.write(text("UPDATE profiles SET profile = :profile"), {"profile": json.dumps(profile).encode()})
        ledger.close()
        upgraded = Ledger(tmp_path / LEDGER_FILE, waiting=waiting)
        assert registry_queries.count_devices(upgraded, "f", registry_queries.DeviceFilter(board=SHOWN)) == 1
        upgraded.close()
