"""Which job runs when, and on which devices: selectors, the schedule, wishes and the feed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError
from edge_runtime.files.nearest import with_nearest
from server import events
from server.compose import compose_coordinator, open_stores
from server.errors import JobError, ToldToStopError
from server.evaluation import Evaluation, InlineEvaluator
from server.job.job import Job, job_of
from server.job.selector import Selector, check_there, parse_selector
from server.queue.feed import Feed
from server.queue.mailbox import Mailbox
from server.queue.schedule import Waiting, owner_of, schedule
from server.queue.supervisor import Supervisor
from server.rounds.services import Services
from server.simulation.virtual import VirtualTransport, VirtualWorld
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.compose import Stores
    from server.queue.supervisor import Prepared
    from server.storage.records import JobRecord

    Prepare = Callable[[JobRecord], Prepared]

GOOD: dict[str, Any] = {"name": "good", "eval_file": "/x", "rounds": 1}
NAMES = ("pi-1", "pi-2", "pi-3")
TAGS = ("kitchen", "attic")
FLEETS = st.dictionaries(st.sampled_from(NAMES), st.frozensets(st.sampled_from(TAGS)))
SELECTORS = st.one_of(
    st.just(Selector(everyone=True)),
    st.builds(
        Selector,
        everyone=st.just(False),
        names=st.frozensets(st.sampled_from(NAMES)),
        tags=st.frozensets(st.sampled_from(TAGS)),
    ),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", Selector(everyone=True)),
        ("pi-1, all", Selector(everyone=True)),
        ("pi-1", Selector(everyone=False, names=frozenset({"pi-1"}))),
        (" tag:kitchen ,pi-2,", Selector(everyone=False, names=frozenset({"pi-2"}), tags=frozenset({"kitchen"}))),
        ("tag:all", Selector(everyone=False, tags=frozenset({"all"}))),
    ],
)
def test_devices_are_named_by_name_and_by_tag(text: str, expected: Selector) -> None:
    assert parse_selector(text) == expected


@pytest.mark.parametrize("text", ["", " , ", "a b", "tag:", "tag:a b", "pi/1", "pi+", "tag:#"])
def test_what_names_no_device_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="devices"):
        parse_selector(text)
    with pytest.raises(ConfigError, match="devices"):
        job_of({"name": "job", "eval_file": "/x", "devices": text})


def test_unknown_devices_and_tags_are_named_with_those_that_there_are() -> None:
    devices = {"pi-1": {"kitchen"}, "pi-2": set()}
    check_there(parse_selector("all"), {}, "default")
    check_there(parse_selector("pi-2, tag:kitchen"), devices, "default")
    with pytest.raises(ConfigError) as raised:
        check_there(parse_selector("tag:cellar"), devices, "default")
    assert "its tags are kitchen" in raised.value.hint
    with pytest.raises(ConfigError, match="never seen a device pi-9"):
        check_there(parse_selector("pi-9"), devices, "default")


@given(
    waiting=st.lists(st.tuples(SELECTORS, st.sampled_from([None, "j0", "done", "gone"])), max_size=6),
    running=st.dictionaries(st.sampled_from(["r0", "r1"]), SELECTORS),
    devices=FLEETS,
)
def test_no_device_ever_works_for_two_jobs_and_none_is_passed_over(
    waiting: list[tuple[Selector, str | None]], running: dict[str, Selector], devices: dict[str, frozenset[str]]
) -> None:
    jobs = [Waiting(f"j{index}", selector, after) for index, (selector, after) in enumerate(waiting)]
    states = {job.name: "queued" for job in jobs} | {"done": "finished"}
    planned = schedule(jobs, running, states, devices)
    assert sorted([*planned.start, *planned.reasons]) == sorted(job.name for job in jobs)
    selectors = {job.name: job.selector for job in jobs}
    at_work = list(running.items()) + [(name, selectors[name]) for name in planned.start]
    for at, (name, selector) in enumerate(at_work):
        for other, other_selector in at_work[at + 1 :]:
            if {name, other} <= running.keys():
                continue  # they were at work before
            assert not selector.overlaps(other_selector, devices)
            assert not any(selector.fits(d, tags) and other_selector.fits(d, tags) for d, tags in devices.items())
    for at, job in enumerate(jobs):
        if job.after in (None, "done") and job.name not in planned.start:
            ahead = [*running.values(), *(other.selector for other in jobs[:at])]
            assert any(selector.overlaps(job.selector, devices) for selector in ahead)
        if job.after in ("j0", "gone"):
            assert job.name not in planned.start


def test_reasons_name_what_a_job_waits_for() -> None:
    everyone = Selector(everyone=True)
    jobs = [Waiting("b", everyone), Waiting("c", everyone, "x"), Waiting("d", everyone, "gone")]
    planned = schedule(jobs, {"a": everyone}, {"x": "failed"}, {})
    assert planned.start == []
    assert planned.reasons == {
        "b": "waits for devices of a",
        "c": "waits for x, which is failed",
        "d": "waits for gone, which is not there any more",
    }


def test_a_device_works_for_the_oldest_job_that_it_fits() -> None:
    kitchen, everyone = Selector(everyone=False, tags=frozenset({"kitchen"})), Selector(everyone=True)
    assert owner_of("pi", {"kitchen"}, {"old": kitchen, "new": everyone}) == "old"
    assert owner_of("pi", set(), {"old": kitchen, "new": everyone}) == "new"
    assert owner_of("pi", set(), {"old": kitchen}) is None


def test_a_wish_is_done_in_the_other_thread_and_its_error_is_the_asker_s() -> None:
    mailbox, stop = Mailbox(), threading.Event()

    def serve() -> None:
        while not stop.wait(0.001):
            mailbox.serve()

    thread = threading.Thread(target=serve, name="server")
    thread.start()
    try:
        assert mailbox.ask(lambda: threading.current_thread().name, 60.0) == "server"

        def refuse() -> None:
            raise JobError("it is taken", "take another")

        with pytest.raises(JobError, match="it is taken"):
            mailbox.ask(refuse, 60.0)
    finally:
        stop.set()
        thread.join()
    with pytest.raises(JobError, match="too busy"):
        mailbox.ask(lambda: None, 0.01)


def test_the_feed_keeps_the_last_events_of_each_job() -> None:
    feed = Feed(kept=3)
    for index in range(5):
        feed.put("a", events.RoundClosed(round=index, reports=1, adapter_sha256="x"))
    feed.put("b", events.Syncing(proved=0, devices=1))
    found = feed.since("a", 0)
    assert [event.round for _, event in found if isinstance(event, events.RoundClosed)] == [2, 3, 4]
    assert feed.since("a", found[1][0]) == found[2:]
    assert len(feed.since("b", 0)) == 1
    feed.forget("a")
    assert feed.since("a", 0) == []


def supervised(tmp_path: Path, jobs: list[dict[str, Any]], prepare: Prepare) -> tuple[Supervisor, Stores]:
    """A supervisor of a fleet without devices, to which jobs were submitted."""
    stores, world = open_stores(tmp_path), VirtualWorld()
    for config in jobs:
        stores.ledger.submit_job(config["name"], "default", "a" * 64, "/nowhere", config)
    transport = VirtualTransport(world, lambda _topic, _payload: None)
    evaluator = InlineEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(transport, stores.uploads, evaluator, world.clock, "http://nowhere")
    coordinator = compose_coordinator("default", stores.ledger, services, lambda _event: None)
    return Supervisor(
        coordinator, stores.ledger, prepare, world.clock, lambda _job, _event: None, lambda: False
    ), stores


def test_a_job_that_is_cut_off_by_the_servers_stop_has_not_failed(tmp_path: Path) -> None:
    asked = threading.Event()

    def prepare(_record: JobRecord) -> Prepared:
        asked.set()
        raise ToldToStopError("told to stop while it waits", "")

    supervisor, stores = supervised(tmp_path, [GOOD], prepare)
    supervisor.turn(0)
    assert asked.wait(60)
    supervisor.close()  # waits for the preparation
    supervisor.turn(0)
    record = queries.find_job(stores.ledger, "good")
    assert record is not None
    assert (record.state, record.reason) == ("queued", None)
    assert not supervisor.errors
    stores.ledger.close()


def test_a_job_of_another_version_fails_with_the_reason_and_the_others_go_on(tmp_path: Path) -> None:
    asked = threading.Event()

    def prepare(record: JobRecord) -> Prepared:
        assert record.name == "good"
        asked.set()
        raise JobError("there is nothing to prepare here", "")

    supervisor, stores = supervised(tmp_path, [{**GOOD, "name": "old", "a_field_of_before": 1}, GOOD], prepare)
    supervisor.turn(0)
    assert asked.wait(60)
    failed = queries.find_job(stores.ledger, "old")
    assert failed is not None
    assert failed.state == "failed"
    assert "another version of Covey" in (failed.reason or "")
    assert "a_field_of_before" in (failed.reason or "")
    supervisor.close()
    stores.ledger.close()


@pytest.mark.parametrize(
    ("table", "nearest"),
    [
        ({"device": "pi"}, "devices"),
        ({"step": {"learning_rat": 1.0}}, "learning_rate"),
        ({"stld": {"level": [1]}}, "levels"),
        ({"bandit": {"polici": "thompson"}}, "policy"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(table: dict[str, object], nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean `{nearest}`"):
        job_of({"name": "job", "eval_file": "/x", **table})


def test_a_key_that_is_near_to_none_gets_no_proposal() -> None:
    assert with_nearest("Object contains unknown field `zzz`", Job) == "Object contains unknown field `zzz`"
    assert with_nearest("Expected `int`, got `str`", Job) == "Expected `int`, got `str`"
