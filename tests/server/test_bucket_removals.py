"""What nobody wants any more goes from a bucket in the background: at once, in bulk, after a restart, nothing else."""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3 import S3

from server.storage.bucket import MOST_AT_ONCE, Bucket
from server.storage.bucket_blobs import BucketBlobs
from server.storage.removals import Removals

ENOUGH_S = 120.0


class Slow:
    """A bucket that removes when it is let."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self.asked, self.let = threading.Event(), threading.Event()
        self.is_away = False

    def try_to_remove(self, keys: Sequence[str]) -> bool:
        self.requests.append(list(keys))
        self.asked.set()
        assert self.let.wait(ENOUGH_S)
        return not self.is_away


def name_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def removals(bucket: Slow, root: Path, *, is_ours: Callable[[], bool] = lambda: True, most: int = 3) -> Removals:
    return Removals(bucket, "deltas", root / "note.txt", is_ours, most)


def test_nobody_waits_for_a_slow_bucket_and_many_go_by_one_request(tmp_path: Path) -> None:
    bucket = Slow()
    made = removals(bucket, tmp_path)
    made.add(name_of(0))
    assert bucket.asked.wait(ENOUGH_S)
    for number in range(1, 8):
        made.add(name_of(number))  # it would never return if it waited
    assert all(name_of(number) in made for number in range(8))
    bucket.let.set()
    assert made.settle(ENOUGH_S)
    assert [len(keys) for keys in bucket.requests] == [1, 3, 3, 1]
    assert bucket.requests[0] == [f"deltas/{name_of(0)}"]
    assert not (tmp_path / "note.txt").exists()


def test_a_restart_goes_on_with_what_was_left_but_never_removes_what_is_wanted(tmp_path: Path) -> None:
    away = Slow()
    away.is_away = True
    away.let.set()
    killed = removals(away, tmp_path)
    for number in range(3):
        killed.add(name_of(number))
    assert not killed.settle(ENOUGH_S)
    killed.keep(name_of(1))
    bucket = Slow()
    bucket.let.set()
    after = removals(bucket, tmp_path)
    after.go_on(lambda: {name_of(2)})
    assert after.settle(ENOUGH_S)
    assert bucket.requests == [[f"deltas/{name_of(0)}"]]


def test_nothing_is_asked_of_the_ledger_where_nothing_was_left(tmp_path: Path) -> None:
    def never() -> set[str]:
        raise AssertionError("nobody asks")

    removals(Slow(), tmp_path).go_on(never)


def test_a_server_that_has_lost_its_ledger_removes_nothing_more(tmp_path: Path) -> None:
    bucket = Slow()
    bucket.let.set()
    is_ours = False
    made = removals(bucket, tmp_path, is_ours=lambda: is_ours)
    made.add(name_of(0))
    assert not made.settle(ENOUGH_S)
    assert bucket.requests == []
    is_ours = True
    made.add(name_of(1))
    assert made.settle(ENOUGH_S)
    assert sorted(itertools.chain(*bucket.requests)) == sorted(f"deltas/{name_of(number)}" for number in range(2))


@pytest.mark.parametrize("is_away", [False, True])
def test_what_is_wanted_again_waits_until_it_is_gone(tmp_path: Path, is_away: bool) -> None:
    """Else the request that is under way would remove what is written now."""
    bucket = Slow()
    bucket.is_away = is_away
    made = removals(bucket, tmp_path)
    made.add(name_of(0))
    assert bucket.asked.wait(ENOUGH_S)
    kept = threading.Event()

    def keep() -> None:
        made.keep(name_of(0))
        kept.set()

    thread = threading.Thread(target=keep)
    thread.start()
    assert not kept.wait(0.2)
    bucket.let.set()
    assert kept.wait(ENOUGH_S)
    thread.join()
    made.settle(ENOUGH_S)
    bucket.is_away = False
    made.add(name_of(1))
    assert made.settle(ENOUGH_S)
    assert list(itertools.chain(*bucket.requests)).count(f"deltas/{name_of(0)}") == 1


@given(st.lists(st.tuples(st.sampled_from(["add", "keep", "away", "here", "restart"]), st.integers(0, 3)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_what_was_kept_last_is_never_removed_later(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    root, bucket = tmp_path_factory.mktemp("note"), Slow()
    bucket.let.set()
    made, unwanted = removals(bucket, root), set[str]()
    for step, number in steps:
        name = name_of(number)
        if step == "add":
            made.add(name)
            unwanted.add(name)
        elif step == "keep":
            made.keep(name)
            unwanted.discard(name)
        else:
            made.settle(ENOUGH_S)
            bucket.is_away = step == "away" or (step == "restart" and bucket.is_away)
        if step == "restart":
            made = removals(bucket, root)
            made.go_on(set)
        made.settle(ENOUGH_S)
        asked = len(bucket.requests)
    made.settle(ENOUGH_S)
    bucket.is_away, asked = False, len(bucket.requests)
    made.add(name_of(9))
    assert made.settle(ENOUGH_S)
    later = {key.removeprefix("deltas/") for keys in bucket.requests[asked:] for key in keys}
    assert later - {name_of(9)} <= unwanted


# -- a real bucket -----------------------------------------------------------------------------------------------------


@pytest.fixture
def away(s3: S3) -> Iterator[S3]:
    """A server that a test stops, and that runs again after it."""
    yield s3
    s3.stop()
    s3.start()


def store_of(s3: S3, address: str, root: Path) -> BucketBlobs:
    return BucketBlobs(Bucket(address, s3.settings()), "blobs", root)


def test_a_thousand_blobs_and_one_go_by_two_requests(s3: S3, tmp_path: Path) -> None:
    address = s3.new_bucket()
    bucket = Bucket(address, s3.settings())
    names = [name_of(number) for number in range(MOST_AT_ONCE + 1)]
    for name in names[:3]:
        s3.write(address, f"blobs/{name}", b"x")
    assert bucket.try_to_remove([f"blobs/{name}" for name in names[:MOST_AT_ONCE]])  # those that are not there too
    assert s3.objects(address) == {}


def test_what_was_removed_while_the_bucket_was_away_goes_after_a_restart(away: S3, tmp_path: Path) -> None:
    address = away.new_bucket()
    store = store_of(away, address, tmp_path)
    first, second, third = (store.add(data).sha256 for data in (b"1", b"2", b"3"))
    away.stop()
    for sha256 in (first, second, third):
        store.remove(sha256)
    store.close(ENOUGH_S)
    assert not store.has(first)
    assert store.path(first) is None
    away.start()
    store.add(b"2")  # it is wanted again
    after = store_of(away, address, tmp_path)
    after.begin(lambda: {third})
    after.close(ENOUGH_S)
    assert set(away.objects(address)) == {f"blobs/{second}", f"blobs/{third}"}
