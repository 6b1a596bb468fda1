"""Who is waited for at the end of a job."""

from __future__ import annotations

from server.rounds.final_sync import FinalSync


def test_the_end_waits_for_the_proofs_of_those_that_are_here() -> None:
    sync = FinalSync(100.0, {"a", "b"})
    assert sync.to_send({"a", "c"}) == ["a", "c"]
    assert sync.to_send({"a", "c"}) == []
    assert not sync.is_over({"a", "c"}, {"a"}, None, 101.0)
    assert (sync.progress({"a"}).proved, sync.progress({"a"}).devices) == (1, 2)
    assert sync.is_over({"a", "c"}, {"a", "c"}, None, 101.0)
    assert sync.is_over({"a", "c"}, {"a"}, None, 161.0)  # nobody is waited for longer


def test_a_server_that_has_just_started_waits_for_those_that_took_part() -> None:
    sync = FinalSync(100.0, {"a", "b"})
    assert not sync.is_over(set(), set(), set(), 101.0)
    assert sync.to_send({"a"}) == ["a"]
    assert not sync.is_over({"a"}, {"a"}, {"a"}, 102.0)  # b may yet answer the hello
    assert not sync.is_over({"a"}, {"a"}, {"a", "b"}, 103.0)  # b is heard of, and may say that it is here
    assert sync.is_over({"a"}, {"a"}, {"a", "b"}, 105.5)  # it is off
    assert sync.is_over({"a"}, {"a"}, None, 120.0)  # or had its time


def test_one_that_left_has_a_moment_for_its_proof() -> None:
    sync = FinalSync(100.0, {"a"})
    sync.to_send({"a"})
    assert not sync.is_over({"a"}, set(), None, 110.0)
    assert not sync.is_over(set(), set(), None, 112.0)
    assert sync.is_over(set(), set(), None, 113.5)
