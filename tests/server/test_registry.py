"""A registry of many devices: pages and filters by indexes, the same answers as from looking at every device."""

from __future__ import annotations

import contextlib
import io
import json
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from operator_sites import ALICE, site
from profiles import PROFILE
from sqlalchemy import event, text

from benchmarks.speed.registry import FILTERS, FLEET, fill, pages_of, paths_of
from server.cli import main
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.registry_queries import (
    DeviceFilter,
    count_devices,
    devices_after,
    devices_before,
    find_device,
    fleets_of,
)
from server.views.registry import MOST_ON_A_PAGE, device_list, device_page

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEVICES = 5_000
WANTED = {
    "all": DeviceFilter(),
    "name": DeviceFilter(text="E-00012"),
    "state": DeviceFilter(state="busy"),
    "common tag": DeviceFilter(tag="arm"),
    "rare tag": DeviceFilter(tag="room-77"),
    "version": DeviceFilter(version="0.1.2"),
    "free": DeviceFilter(standing="free"),
    "ineligible": DeviceFilter(standing="ineligible"),
    "resting": DeviceFilter(standing="resting"),
    "quarantine": DeviceFilter(standing="quarantine"),
    "several": DeviceFilter(text="7", state="online", tag="arm", version="0.1.0", standing="free"),
}
INDEXES = {
    "state": "devices_by_state",
    "version": "devices_by_version",
    "free": "devices_free",
    "ineligible": "devices_ineligible",
    "resting": "devices_resting",
    "quarantine": "devices_quarantine",
}
"""The index that finds the devices of a filter alone."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(tmp_path_factory.mktemp("many") / LEDGER_FILE, durable=False)) as ledger:
        fill(ledger, DEVICES)
        yield ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE, durable=False)) as made:
        yield made


def fits(device: dict[str, Any], wanted: DeviceFilter) -> bool:
    """Whether a listed device is asked for, found without an index."""
    held_back = {name: device[key] is not None for name, key in _REASONS.items()}
    held_back["free"] = not any(held_back.values())
    return (
        wanted.text.lower() in device["device"].lower()
        and wanted.state in ("", device["state"])
        and (not wanted.tag or wanted.tag in device["tags"])
        and wanted.version in ("", device["covey_version"])
        and (not wanted.standing or held_back[wanted.standing])
    )


_REASONS = {"ineligible": "ineligible", "resting": "reason", "quarantine": "quarantine"}


@pytest.mark.parametrize("wanted", WANTED.values(), ids=WANTED)
def test_pages_of_a_filter_have_each_of_its_devices_once_and_in_order(many: Ledger, wanted: DeviceFilter) -> None:
    expected = [device["device"] for device in device_list(many) if fits(device, wanted)]
    assert len(expected) > 0
    assert count_devices(many, FLEET, wanted) == len(expected)
    found, after = [], ""
    while True:
        page = device_page(many, wanted, after, 700)
        assert len(page["devices"]) <= 700
        found += [device["device"] for device in page["devices"]]
        after = page["next"]
        if after is None:
            break
    assert found == expected
    middle = expected[len(expected) // 2]
    before = devices_before(many, FLEET, wanted, middle, 30)
    assert [row.device for row in before] == [name for name in expected if name < middle][-30:]


@pytest.fixture
def plans_of(many: Ledger) -> Callable[[Callable[[], object]], list[str]]:
    """Return how the database carries out each question that a function asks."""

    def plans(ask: Callable[[], object]) -> list[str]:
        asked: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append((statement, parameters))

        connection = many.database._connection
        event.listen(connection, "before_cursor_execute", note)
        try:
            ask()
        finally:
            event.remove(connection, "before_cursor_execute", note)
        if connection.dialect.name == "postgresql":
            for setting in ("enable_seqscan", "enable_sort"):
                connection.exec_driver_sql(f"SET {setting} = off")  # so few rows would be sorted
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        return [
            " / ".join(str(row[-1]) for row in connection.exec_driver_sql(f"{explain} {statement}", parameters))
            for statement, parameters in asked
        ]

    return plans


@pytest.mark.parametrize(("name", "wanted"), WANTED.items(), ids=WANTED)
def test_no_page_reads_or_sorts_the_whole_registry(
    many: Ledger, plans_of: Callable[[Callable[[], object]], list[str]], name: str, wanted: DeviceFilter
) -> None:
    for ask in (
        lambda: devices_after(many, FLEET, wanted, "device-000100", 50),
        lambda: devices_before(many, FLEET, wanted, "device-004000", 50),
    ):
        (plan,) = plans_of(ask)
        assert "SCAN" not in plan.replace("Index Scan", "").replace("Index Only Scan", ""), plan
        assert "TEMP B-TREE" not in plan, plan
        assert "Sort" not in plan, plan
        assert INDEXES.get(name, "") in plan, plan
    (plan,) = plans_of(lambda: count_devices(many, FLEET, wanted))
    assert INDEXES.get(name, "") in plan, plan
    assert "Seq Scan" not in plan, plan


def test_a_page_asks_as_often_and_reads_as_many_rows_in_a_large_registry(
    many: Ledger, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = fill(ledger, 120)
    kind, read = type(many.database), list[int]()
    original = kind.rows

    def counted(database: Any, query: Any, *values: Any) -> Any:
        rows = original(database, query, *values)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(kind, "rows", counted)
    work: dict[str, list[int]] = {}
    for found in (ledger, many):
        with pages_of(found) as client:
            for name, path in paths_of(board, "device-000060").items():
                read.clear()
                assert client.get(path).status_code == 200
                assert max(read) <= 51, name
                work.setdefault(name, []).append(len(read))
    assert all(abs(small - large) <= 2 for small, large in work.values()), work  # an empty page asks less
    assert set(work) >= {f"{where}_{name}" for where in ("api", "dashboard") for name in FILTERS}


def listed(ledger: Ledger, **wanted: Any) -> list[str]:
    return [row.device for row in devices_after(ledger, "home", DeviceFilter(**wanted), "", 50)]


def test_what_is_filtered_by_follows_every_message(ledger: Ledger) -> None:
    ledger.tag_device("home", "pi", "given")  # before the device was ever seen
    assert listed(ledger, tag="given") == []
    ledger.device_born("home", "pi", json.dumps({"tags": ["own", "old"], "covey_version": "1"}))
    assert [listed(ledger, tag=tag) for tag in ("given", "own", "old")] == [["pi"]] * 3
    ledger.device_born("home", "pi", json.dumps({"tags": ["own", "new"], "covey_version": "2"}))
    assert [listed(ledger, tag=tag) for tag in ("given", "own", "old", "new")] == [["pi"], ["pi"], [], ["pi"]]
    assert (listed(ledger, version="1"), listed(ledger, version="2")) == ([], ["pi"])
    ledger.tag_device("home", "pi", "own")
    ledger.untag_device("home", "pi", "own")  # it has the tag by itself
    ledger.untag_device("home", "pi", "given")
    assert (listed(ledger, tag="own"), listed(ledger, tag="given")) == (["pi"], [])
    assert listed(ledger, standing="free") == ["pi"]
    ledger.device_state("home", "pi", "busy", "not charging")
    ledger.device_reason("home", "pi", "no space left")
    assert listed(ledger, standing="free") == []
    assert listed(ledger, standing="resting") == listed(ledger, standing="ineligible", state="busy") == ["pi"]
    assert ledger.device_quarantined("home", "pi", "copied")
    assert listed(ledger, standing="quarantine") == ["pi"]
    assert ledger.forget_device("home", "pi")
    assert [listed(ledger, tag=tag) for tag in ("own", "new")] == [[], []]


@pytest.mark.parametrize("born_first", [False, True])
def test_a_board_is_known_whichever_message_comes_first(ledger: Ledger, *, born_first: bool) -> None:
    def profile() -> None:
        assert ledger.profile_received("home", "pi", "0" * 64, PROFILE, [])

    def born() -> None:
        ledger.device_state("home", "pi", "online")

    for happens in (born, profile) if born_first else (profile, born):
        happens()
    assert listed(ledger, board=PROFILE.facts.board) == ["pi"]
    other = msgspec.structs.replace(PROFILE, facts=msgspec.structs.replace(PROFILE.facts, board="Another board"))
    assert ledger.profile_received("home", "pi", "1" * 64, other, [])
    assert (listed(ledger, board=PROFILE.facts.board), listed(ledger, board="Another board")) == ([], ["pi"])


def test_a_damaged_birth_is_replaced_by_the_next(ledger: Ledger) -> None:
    ledger.device_born("home", "pi", json.dumps({"tags": ["own"]}))
    for damage in ("{", '{"tags": 3}'):
        ledger.database.write(text("UPDATE devices SET birth = :birth"), {"birth": damage})
        ledger.device_born("home", "pi", json.dumps({"tags": ["again"]}))
        assert (listed(ledger, tag="own"), listed(ledger, tag="again")) == ([], ["pi"])


def test_pages_go_on_from_fleet_to_fleet(ledger: Ledger) -> None:
    for fleet in ("a", "b", "c"):
        for number in range(3):
            ledger.device_born(fleet, f"pi-{number}", "{}")
    assert fleets_of(ledger) == ["a", "b", "c"]
    found, after, sizes = [], "", []
    while after is not None:
        page = device_page(ledger, DeviceFilter(), after, 2)
        sizes.append(len(page["devices"]))
        found += [(device["fleet"], device["device"]) for device in page["devices"]]
        after = page["next"]
    assert found == [(fleet, f"pi-{number}") for fleet in "abc" for number in range(3)]
    assert sizes == [2, 2, 2, 2, 1]
    assert device_page(ledger, DeviceFilter(), "b/pi-2", 3)["next"] is None
    assert device_page(ledger, DeviceFilter(), "nothing", 3)["devices"] == []


def test_the_command_lists_all_pages_of_a_server_and_filters_without_one(tmp_path: Path) -> None:
    with site(tmp_path) as served:
        for number in range(MOST_ON_A_PAGE + 3):
            served.ledger.device_born("default", f"pi-{number:04}", json.dumps({"tags": [f"room-{number % 4}"]}))
        token = tmp_path / "token"
        token.write_text(ALICE)
        reach = ["--server", served.url, "--token-file", str(token)]

        def names(*options: str) -> list[str]:
            with redirect_stdout(io.StringIO()) as out:
                assert main(["device", "list", "--format", "json", *options]) == 0
            found = json.loads(out.getvalue())
            assert found.keys() == {"devices"}
            return [device["device"] for device in found["devices"]]

        everything = [f"pi-{number:04}" for number in range(MOST_ON_A_PAGE + 3)]
        assert names(*reach) == everything
        assert names("--tag", "room-3", "--name", "PI-00", *reach) == everything[3:100:4]
        with served.command() as api:
            assert api.get("/devices", params={"limit": 0}).status_code == 400
            assert api.get("/devices", params={"standing": "upright"}).status_code == 400
            assert len(api.get("/devices").json()["devices"]) == MOST_ON_A_PAGE
        assert find_device(served.ledger, "default", everything[-1]) is not None
        state_dir = ["--state-dir", str(tmp_path / "state")]
    assert names("--tag", "room-3", "--name", "PI-00", *state_dir) == everything[3:100:4]
