"""Two machines with one name: found by a start that speaks again, never by restarts."""

from __future__ import annotations

from typing import Any

import msgspec
from bench import FORWARD_ONLY, birth_of
from hypothesis import given
from hypothesis import strategies as st

from server.fleet.name_watch import LASTS_S, MOST_NAMES, NameWatch


def birth(boot_id: str, device: str = "pi", **changes: Any) -> Any:
    made = birth_of(device, FORWARD_ONLY, epoch="e")
    return msgspec.structs.replace(made, boot_id=boot_id, hostname=f"host-{boot_id}", address="192.0.2.7", **changes)


def test_a_start_that_returns_is_a_second_machine_and_both_are_named() -> None:
    watch = NameWatch()
    assert watch.take(birth("A"), 0.0) is None
    assert watch.take(birth("B"), 1.0) is None
    found = watch.take(birth("A"), 2.0)
    assert found is not None
    for words in ("pi", "host-A", "host-B", "192.0.2.7", "boot id A", "boot id B"):
        assert words in found.what
    assert watch.take(birth("B"), 3.0) is None  # said once
    assert list(watch.doubled(4.0)) == ["pi"]
    assert watch.doubled(3.0 + LASTS_S) == {}
    assert watch.take(birth("A"), 4.0 + 2 * LASTS_S) is not None  # they are back


def test_a_third_machine_is_said_too() -> None:
    watch = NameWatch()
    said = [watch.take(birth(boot_id), 0.0) for boot_id in "ABABCA"]
    assert [found and f"{found.first.boot_id}{found.second.boot_id}" for found in said] == [
        None, None, "AB", None, None, "AC",
    ]  # fmt: skip


@given(st.lists(st.integers(1, 4), max_size=60))
def test_restarts_and_new_connections_are_no_second_machine(connections: list[int]) -> None:
    watch = NameWatch()
    for start, number in enumerate(connections):
        for connection in range(number):
            assert watch.take(birth(f"boot-{start}", connection=connection), float(start)) is None


@given(st.lists(st.sampled_from("ABC"), max_size=30))
def test_it_is_said_exactly_where_an_old_start_speaks_again(order: list[str]) -> None:
    watch = NameWatch()
    said = [watch.take(birth(boot_id), 0.0) is not None for boot_id in order]
    changes = [boot_id for at, boot_id in enumerate(order) if at == 0 or order[at - 1] != boot_id]
    assert any(said) == (len(set(changes)) < len(changes))


def test_other_names_do_not_matter_and_memory_is_bounded() -> None:
    watch = NameWatch(most_names=100)
    assert [watch.take(birth(boot_id, device), 0.0) for boot_id, device in ("Aa", "Bb", "Ac", "Ab")] == [None] * 4
    assert [watch.take(birth(boot_id), 0.0) is not None for boot_id in "ABA"] == [False, False, True]
    for number in range(105):
        watch.take(birth("A", f"device-{number}"), 0.0)
    assert len(watch._starts) == 100
    assert list(watch.doubled(1.0)) == ["pi"]  # though it has not spoken for long
    watch.forget("device-9")
    assert watch.take(birth("B", "device-9"), 0.0) is None


def test_a_doubled_name_is_found_though_all_devices_of_a_large_fleet_speak_in_turn() -> None:
    """As after each hello of a server that starts."""
    assert MOST_NAMES >= 100_000, "a server's registry is made for so many"
    for most_names, is_found in ((1000, True), (999, False)):
        watch, made = NameWatch(most_names), birth("A")
        said = []
        for boot_id in "ABA":
            said += [watch.take(msgspec.structs.replace(made, device=f"other-{n}"), 0.0) for n in range(999)]
            said.append(watch.take(birth(boot_id), 0.0))
        assert any(said) == is_found
