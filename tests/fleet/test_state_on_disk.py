"""The state of a device, damaged on purpose: every file is fetched again or set aside, and the device goes on."""

from __future__ import annotations

import resource
import shutil
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from bench import JOB, Bench, ScriptedDevice, bench_of, coordinator, drain, good_report, sync, talk
from hybrid import answers, backprop_plan, make_agent

from edge_runtime.agent.agent import Finished
from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.cli import main
from edge_runtime.errors import StorageError
from edge_runtime.files.aside import set_aside
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import TrainPlan
from edge_runtime.protocol.reports import PlanRefused, RoundReport
from edge_runtime.store.journal import Journal, JournalDamagedError
from edge_runtime.store.state_check import check_state_dir
from server.rounds import patience
from server.storage import queries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

NEWER = b'{"version":2,"job":"job","bundles":[]}'
CONTENTS = {
    "empty": b"",
    "nul": b"\0" * 300,
    "garbage": b"\xff\xfe not a journal",
    "newer": NEWER,
    "cut": msgspec.json.encode(Journal(job="job", bundle_sha256="0" * 64))[:-9],
    "other types": b'{"job": 5}',
    "another document": b"[1, 2]",
    "nested": b'{"job":' + b"[" * 100_000,
    "bad text": b'{"job":"\xed\xa0\x80"}',
}


@pytest.fixture
def plain(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    """A bench whose bundle has forward-only graphs."""
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


def spoil_empty(path: Path) -> None:
    path.write_bytes(b"")


def spoil_nul(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def spoil_cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil_missing(path: Path) -> None:
    path.unlink()


def spoil_folder(path: Path) -> None:
    path.unlink()
    (path / "with" / "something in it").mkdir(parents=True)


def spoil_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


SPOILS = [spoil_empty, spoil_nul, spoil_cut, spoil_bit, spoil_missing, spoil_folder, spoil_link]


@pytest.mark.parametrize("kind", CONTENTS)
def test_a_damaged_journal_is_set_aside_and_the_device_goes_on(
    plain: Bench, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = plain.store.root / "journal.json"
    path.write_bytes(CONTENTS[kind])
    with pytest.raises(JournalDamagedError, match=r"journal\.json") as caught:
        check_state_dir(plain.store.root)
    assert "sets the journal aside" in caught.value.hint
    assert path.read_bytes() == CONTENTS[kind]  # a check changes nothing
    reference, _, _ = plain.next_adapter()
    _, finished = talk(plain, [sync(plain, reference)])
    assert finished == Finished("job", reference.file.sha256)
    assert path.with_name("journal.json.bad").read_bytes() == CONTENTS[kind]
    assert "set aside as" in caplog.text
    assert plain.store.journal().adapter_sha256 == reference.file.sha256
    check_state_dir(plain.store.root)


def test_a_journal_that_is_a_folder_is_set_aside(plain: Bench) -> None:
    (plain.store.root / "journal.json" / "x").mkdir(parents=True)
    _, finished = talk(plain, [sync(plain, plain.initial())])
    assert finished is not None
    assert (plain.store.root / "journal.json.bad" / "x").is_dir()


def test_nothing_that_was_set_aside_is_overwritten_without_need(tmp_path: Path) -> None:
    path = tmp_path / "journal.json"
    for number in range(11):
        path.write_bytes(b"%d" % number)
        set_aside(path, "a test")
    kept = {found.name: found.read_bytes() for found in tmp_path.iterdir()}
    assert set(kept) == {"journal.json.bad", *(f"journal.json.bad.{number}" for number in range(2, 10))}
    assert set(kept.values()) == {b"%d" % number for number in range(2, 11)}


@pytest.mark.parametrize("spoil", SPOILS)
def test_every_file_of_a_bundle_is_mended(plain: Bench, spoil: Callable[[Path], None]) -> None:
    """One restart for each file would be slow: each is spoilt in the same folder, the manifest too."""
    talk(plain, [sync(plain, plain.initial())])
    folder = plain.store.bundles / plain.bundle.sha256
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        spoil(path)
    _, finished = talk(plain, [sync(plain, plain.initial())])
    assert finished is not None
    verify_files(open_bundle(folder))


def test_what_is_in_the_way_of_a_bundle_is_cleared(plain: Bench) -> None:
    folder = plain.store.bundles / plain.bundle.sha256
    folder.write_bytes(b"a file")
    partial = folder.with_name(f"{folder.name}.partial")
    partial.symlink_to("nowhere")
    _, finished = talk(plain, [sync(plain, plain.initial())])
    assert finished is not None
    assert folder.with_name(f"{folder.name}.bad").read_bytes() == b"a file"
    verify_files(open_bundle(folder))
    # Another bundle under this one's name is whole in itself, and yet not what the name says.
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    _, finished = talk(plain, [sync(plain, plain.initial())])
    assert finished is not None
    assert open_bundle(folder).sha256 == plain.bundle.sha256


@pytest.mark.parametrize("spoil", SPOILS)
def test_a_damaged_adapter_is_had_again(plain: Bench, spoil: Callable[[Path], None]) -> None:
    reference, theta, _ = plain.next_adapter()
    talk(plain, [sync(plain, reference)])
    path = plain.store.adapter_file(reference.file.sha256)
    spoil(path)
    unfinished = path.with_name(f"{path.name}.part")
    unfinished.mkdir()
    _, finished = talk(plain, [sync(plain, msgspec.structs.replace(reference, log=None, log_base_sha256=None))])
    assert finished == Finished("job", reference.file.sha256)
    assert path.read_bytes() == theta.tobytes()


def test_folders_among_the_adapters_do_not_stop_a_device(plain: Bench) -> None:
    adapters = plain.store.adapter_file("x").parent
    for name in (f"{'0' * 64}.bin", f"{'1' * 64}.bin", "old.partial", "old.before"):
        (adapters / name / "x").mkdir(parents=True)
    reference, theta, _ = plain.next_adapter()
    path = plain.store.adapter_file(reference.file.sha256)
    path.mkdir()
    reports, finished = talk(plain, [sync(plain, reference)])
    assert finished == Finished("job", reference.file.sha256)
    assert not any(isinstance(report, PlanRefused) for report in reports)
    assert path.read_bytes() == theta.tobytes()


@pytest.mark.parametrize("content", [b"", b"\0" * 50, b"{}", b"[" * 100_000])
def test_a_damaged_profile_is_set_aside(plain: Bench, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = plain.store.root / "profile.json"
    path.write_bytes(content)
    _, finished = talk(plain, [sync(plain, plain.initial())])
    assert finished is not None
    assert path.with_name("profile.json.bad").read_bytes() == content
    assert "profile.json is unusable" in caplog.text
    path.mkdir()
    talk(plain, [sync(plain, plain.initial())])
    assert path.with_name("profile.json.bad.2").is_dir()


@pytest.mark.parametrize("spoil", SPOILS)
def test_damaged_personal_layers_are_set_aside(bench: Bench, spoil: Callable[[Path], None]) -> None:
    agent = make_agent(bench)
    answers(bench, agent, ("plan", backprop_plan(bench)))
    path = bench.store.personal_file(bench.store.journal().personal_sha256 or "")
    spoil(path)
    was_there = path.exists()
    for round_index in (1, 2):  # what was set aside outlives later rounds
        reports = answers(bench, agent, ("plan", backprop_plan(bench, round=round_index)))
        assert not any(isinstance(report, PlanRefused) for report in reports)
    assert path.with_name(f"{path.name}.bad").exists() == was_there
    assert bench.store.personal_file(bench.store.journal().personal_sha256 or "").is_file()


@pytest.mark.parametrize("others", ["none", "damaged", "of another job"])
def test_personal_layers_outlive_a_damaged_journal(bench: Bench, others: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server has no copy of them, and only the journal named them."""
    answers(bench, make_agent(bench), ("plan", backprop_plan(bench)))
    before = bench.store.journal()
    assert before.personal_sha256 is not None
    if others != "none":
        newer = bench.store.personal_file("f" * 64)
        newer.write_bytes(b"\0" * 40)
        if others == "of another job":
            answers(bench, make_agent(bench), ("plan", backprop_plan(bench, job="other")))
    journal = bench.store.root / "journal.json"
    job = "job" if others != "of another job" else "other"
    before = bench.store.journal()
    journal.write_bytes(b"")
    again = make_agent(bench)
    assert "set aside as" in caplog.text
    assert f"personal layers of job {job} are kept" in caplog.text
    reports = answers(bench, again, ("plan", backprop_plan(bench, round=1, job=job)))
    assert not any(isinstance(report, PlanRefused) for report in reports)
    assert bench.store.journal().personal_before_sha256 == before.personal_sha256


def test_the_state_directory_may_vanish_between_two_plans(plain: Bench) -> None:
    """A card that was pulled out and put back empty: everything is fetched again, and no plan is refused."""
    agent, server = plain.agent(), plain.hub.join()
    server.subscribe(plain.topic("report"))
    for index in range(3):
        plan = plain.train_plan(plain.initial(), round=index)
        plain.hub.publish(plain.topic("plan"), encode_message(plan), retain=False)
        seen: list[Any] = []
        while not any(isinstance(report, (RoundReport, PlanRefused)) for report in seen):
            agent.serve_waiting()
            seen += drain(server)
        assert isinstance(seen[-1], RoundReport)
        shutil.rmtree(plain.store.root)
    reference, theta, _ = plain.next_adapter()
    plain.hub.publish(plain.topic("plan"), encode_message(sync(plain, reference)), retain=False)
    assert agent.run(until_finished=True) == Finished("job", reference.file.sha256)
    assert plain.store.adapter_file(reference.file.sha256).read_bytes() == theta.tobytes()
    assert plain.store.journal().adapter_sha256 == reference.file.sha256


LOADED = ["adapter", "weights_file", "tokenizer_file", "adapter_file", "predict", "manifest"]


@pytest.mark.parametrize("which", LOADED)
def test_predict_checks_the_hashes_of_what_it_loads(
    plain: Bench, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One flipped bit is found, wherever it is; afterwards a sync mends it."""
    reference, _, _ = plain.next_adapter()
    talk(plain, [sync(plain, reference)])
    config = plain.root / "edge.toml"
    config.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')
    words = ["predict", "--config", str(config), "a good film", "--format", "json"]
    assert main(words) == 0
    folder, manifest = plain.store.bundles / plain.bundle.sha256, plain.bundle.manifest
    if which == "adapter":
        path = plain.store.adapter_file(reference.file.sha256)
    elif which == "predict":
        path = folder / manifest.graph("predict").file
    elif which == "manifest":
        path = folder / "manifest.json"
    else:
        path = folder / getattr(manifest, which)
    if which == "manifest":
        path.write_bytes(path.read_bytes() + b" ")
    else:
        spoil_bit(path)
    capsys.readouterr()
    assert main(words) == 5
    error = msgspec.json.decode(capsys.readouterr().out)
    assert str(plain.store.root) in error["error"]
    assert "covey-edge run" in error["hint"]
    if which not in ("adapter", "manifest"):  # the same bundle without a device
        assert main(["predict", "--bundle", str(folder), "a good film"]) == 5
    if which == "adapter":
        assert main(["predict", "--bundle", str(folder), "--adapter", str(path), "a good film"]) == 5
    talk(plain, [sync(plain, reference)])
    assert main(words) == 0


def test_predict_says_that_the_journal_is_damaged(plain: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    config = plain.root / "edge.toml"
    config.write_text('name = "pi"\nbroker = "mqtt://unused"\nstate_dir = "state"\n[data]\npath = "data.jsonl"\n')
    (plain.store.root / "journal.json").write_bytes(b"\0" * 40)
    assert main(["predict", "--config", str(config), "x"]) == StorageError.exit_code
    assert "covey-edge run: it sets the journal aside" in capsys.readouterr().err


def test_a_round_is_closed_when_there_are_descriptors_again(
    plain: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server has a report and no descriptor left: it waits, and closes the round to the same bits."""
    monkeypatch.setattr(patience, "_AGAIN_S", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    asked_while_short = 0

    def answer(plan: TrainPlan) -> list[Any]:
        if plan.round == 1:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        return [good_report(plan, "pi")]

    device = ScriptedDevice(plain, "pi", answer)

    def turn() -> bool:
        nonlocal asked_while_short
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 0:
            asked_while_short += 1
            if asked_while_short == 3:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        device.turn()
        return False

    try:
        with coordinator(plain, JOB) as (made, ledger):
            assert made.run(turn)
            closed = queries.closed_rounds(ledger, "job")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [done.index for done in closed] == [0, 1]
    assert "no file descriptor left" in caplog.text
    assert asked_while_short >= 3
