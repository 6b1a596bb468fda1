"""``covey backup``: a server's state in one file, from which a job goes on to the same adapter."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from contextlib import closing, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest
from fleets import edge_configs, write_job
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from repository import ROOT

from edge_runtime.errors import ConfigError, StorageError
from server import events
from server.cli import main
from server.errors import JobError
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

DEVICES = 5


def covey(*words: str) -> tuple[int, dict[str, Any]]:
    """Run a command; return its exit code and its last line of JSON."""
    out, rest = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(rest):
        code = main([*words, "--format", "json"])
    assert "Traceback" not in out.getvalue() + rest.getvalue()
    return code, json.loads(out.getvalue().splitlines()[-1])


def create(state: Path, out: Path) -> tuple[int, dict[str, Any]]:
    return covey("backup", "create", "--state-dir", str(state), "--out", str(out))


def restore(archive: Path, state: Path) -> tuple[int, dict[str, Any]]:
    return covey("backup", "restore", str(archive), "--state-dir", str(state))


def files_under(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def left_beside(archive: Path) -> set[str]:
    return {path.name for path in archive.parent.iterdir()}


def run_with_backup(
    root: Path, bundle: Bundle, fields: dict[str, Any], is_time: Callable[[events.Event], bool]
) -> tuple[dict[str, Any], Path]:
    """Run a job to its end; return its summary and a backup that was made when an event came, while the server ran."""
    archive = root / "backup.tar"
    fitted, _ = load_job(write_job(root, **fields), bundle.path)

    def observe(event: events.Event) -> None:
        if is_time(event) and not archive.exists():
            assert create(root / "server", archive)[0] == 0

    done = run_in_process(fitted, bundle, root / "server", edge_configs(root, DEVICES), observe)
    assert archive.exists()
    return done, archive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> tuple[dict[str, Any], Path]:
    """A whole run, and a backup of it with one closed round, and an open one with a report."""
    reports: list[int] = []

    def is_time(event: events.Event) -> bool:
        if isinstance(event, events.ReportTaken):
            reports.append(event.round)
        return reports.count(1) == 2

    root = tmp_path_factory.mktemp("run")
    return run_with_backup(root, tiny_bundle, {"rounds": 3, "min_devices": DEVICES, "min_reports": DEVICES}, is_time)


@pytest.fixture(scope="module")
def archive(made: tuple[dict[str, Any], Path]) -> Path:
    return made[1]


def test_a_backup_of_a_job_at_work_is_resumed_elsewhere_to_the_same_adapter(
    tmp_path: Path, tiny_bundle: Bundle, made: tuple[dict[str, Any], Path]
) -> None:
    undisturbed, archive = made
    assert restore(archive, tmp_path / "server")[0] == 0
    with closing(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)) as ledger:
        assert len(queries.closed_rounds(ledger, "job")) == 1
        opened = queries.open_attempt(ledger, "job")
        assert opened is not None
        assert sorted(opened.offers.values()).count("reported") == 2
    fitted, _ = load_job(
        write_job(archive.parent, rounds=3, min_devices=DEVICES, min_reports=DEVICES), tiny_bundle.path
    )
    done = run_in_process(fitted, tiny_bundle, tmp_path / "server", edge_configs(tmp_path, DEVICES))
    assert done["adapter_sha256"] == undisturbed["adapter_sha256"]
    assert done["loss_end"] == undisturbed["loss_end"]


def test_a_job_with_momentum_is_resumed_with_the_adapter_before(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fields = {"rounds": 4, "min_devices": DEVICES, "min_reports": DEVICES, "server_momentum": 0.5}

    def is_time(event: events.Event) -> bool:
        return isinstance(event, events.RoundClosed) and event.round == 1

    undisturbed, archive = run_with_backup(tmp_path, tiny_bundle, fields, is_time)
    there = tmp_path / "there"
    there.mkdir()
    assert restore(archive, there / "server")[0] == 0
    fitted, _ = load_job(write_job(tmp_path, **fields), tiny_bundle.path)
    done = run_in_process(fitted, tiny_bundle, there / "server", edge_configs(there, DEVICES))
    assert done["adapter_sha256"] == undisturbed["adapter_sha256"]


def test_results_are_in_a_backup(tmp_path: Path, made: tuple[dict[str, Any], Path]) -> None:
    state = made[1].parent / "server"
    assert create(state, tmp_path / "finished.tar")[0] == 0
    assert restore(tmp_path / "finished.tar", tmp_path / "state")[0] == 0
    restored, original = files_under(tmp_path / "state"), files_under(state)
    results = {name: content for name, content in original.items() if name.startswith("jobs/")}
    assert results
    assert {name: restored.get(name) for name in results} == results


def test_the_list_of_files_names_each_with_its_size_and_hash(archive: Path) -> None:
    listed, held = {}, {}
    with tarfile.open(archive) as opened:
        for member in opened:
            file = opened.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name == "covey_backup.json":
                manifest = json.loads(content)
                assert manifest["covey_version"]
                listed = {entry["path"]: (entry["size_bytes"], entry["sha256"]) for entry in manifest["files"]}
            else:
                held[member.name] = (len(content), hashlib.sha256(content).hexdigest())
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")  # nothing of the machine
    assert listed == held
    assert LEDGER_FILE in held


def test_backups_while_a_server_writes_are_each_of_one_moment(tmp_path: Path) -> None:
    """A round and its offers are written in one transaction: a backup has both or neither."""
    state = tmp_path / "state"
    stop, begun = threading.Event(), threading.Event()
    ledger = Ledger(state / LEDGER_FILE)
    ledger.begin_job("job", "default", "b" * 64, {"rounds": 10**6})

    def write() -> None:
        index = 0
        while not stop.is_set():
            ledger.open_round("job", index, 0, '{"split": 2, "rule": {}}', "0" * 64, None, {"a": None, "b": None})
            ledger.abandon_round("job", index, 0)
            index += 1
            begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(60)
        for number in range(4):
            assert create(state, tmp_path / f"{number}.tar")[0] == 0
    finally:
        stop.set()
        writer.join()
        ledger.close()
    for number in range(4):
        assert restore(tmp_path / f"{number}.tar", tmp_path / str(number))[0] == 0
        with closing(Ledger(tmp_path / str(number) / LEDGER_FILE)) as restored:
            rounds, offers = queries.rounds_of(restored, "job"), queries.offers_of(restored, "job")
            assert len(rounds) >= 1
            assert len(offers) == 2 * len(rounds)


# -- what is refused ---------------------------------------------------------------------------------------------------


def check_refused(archive: Path, state: Path, code: int = StorageError.exit_code) -> dict[str, Any]:
    """Check that a restoration is refused with a reason, and that nothing of it is left."""
    before = left_beside(state)
    found, answer = restore(archive, state)
    assert found == code, answer
    assert answer["error"]
    assert not state.exists()
    assert left_beside(state) == before
    return answer


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_was_in_no_file(
    tmp_path_factory: pytest.TempPathFactory, archive: Path, where: float, bit: int
) -> None:
    """Between a file's end and the next header a tar has padding, which is nobody's content."""
    folder = tmp_path_factory.mktemp("flip")
    data = bytearray(archive.read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    (folder / "damaged.tar").write_bytes(data)
    if restore(folder / "damaged.tar", folder / "state")[0] == 0:
        assert restore(archive, folder / "whole")[0] == 0
        assert files_under(folder / "state") == files_under(folder / "whole")
    else:
        assert left_beside(folder / "state") == {"damaged.tar"}


def test_a_flipped_bit_in_any_file_is_refused_with_its_name(tmp_path: Path, archive: Path) -> None:
    with tarfile.open(archive) as opened:
        members = [(member.name, member.offset_data, member.size) for member in opened if member.size]
    for number, (name, offset, size) in enumerate(members):
        data = bytearray(archive.read_bytes())
        data[offset + size // 2] ^= 1
        damaged = tmp_path / f"{number}.tar"
        damaged.write_bytes(data)
        answer = check_refused(damaged, tmp_path / "state")
        assert str(damaged) in answer["error"]
        if name != "covey_backup.json":
            assert name in answer["error"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_cut_archive_is_refused(tmp_path_factory: pytest.TempPathFactory, archive: Path, share: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with tarfile.open(archive) as opened:
        last = opened.getmembers()[-1]
    length = int(share * (last.offset_data + last.size))
    (folder / "cut.tar").write_bytes(archive.read_bytes()[:length])
    check_refused(folder / "cut.tar", folder / "state")


def rewritten(archive: Path, out: Path, added: tarfile.TarInfo, content: bytes = b"") -> Path:
    """Write an archive with one more member, which its list of files names, with the right size and hash."""
    with tarfile.open(archive) as source, tarfile.open(out, "w") as target:
        for member in source:
            file = source.extractfile(member)
            assert file is not None
            data = file.read()
            if member.name == "covey_backup.json":
                manifest = json.loads(data)
                digest = hashlib.sha256(content).hexdigest()
                manifest["files"].append({"path": added.name, "size_bytes": len(content), "sha256": digest})
                data = json.dumps(manifest).encode()
                added.size = len(content)
                target.addfile(added, io.BytesIO(content))
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return out


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "jobs/../../escaped",
        "/escaped",
        "jobs/./x",
        "jobs//x",
        "jobs/..",
        "blobs/../../escaped",
        "blobs/not-a-hash",
        "blobs/" + "0" * 64 + "/x",
        "token",
        "ledger.sqlite-wal",
        "..",
        "",
    ],
)
def test_a_member_that_is_no_file_of_a_backup_is_refused(tmp_path: Path, archive: Path, name: str) -> None:
    folder = tmp_path / "in" / "here"
    folder.mkdir(parents=True)
    path = rewritten(archive, tmp_path / "evil.tar", tarfile.TarInfo(name), b"x")
    check_refused(path, folder / "state")
    assert files_under(tmp_path) == {"evil.tar": path.read_bytes()}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_member_that_is_a_link_or_device_is_refused(tmp_path: Path, archive: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("jobs/job/adapter")
    member.type, member.linkname = kind, "../../../elsewhere"
    check_refused(rewritten(archive, tmp_path / "evil.tar", member), tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"not a tar", b"\0" * 10240])
def test_a_file_that_is_no_backup_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.tar").write_bytes(content)
    check_refused(tmp_path / "other.tar", tmp_path / "state")


def test_a_state_directory_with_something_in_it_is_never_touched(tmp_path: Path, archive: Path) -> None:
    state = tmp_path / "state"
    (state / "jobs").mkdir(parents=True)
    (state / "jobs" / "mine").write_text("mine")
    code, answer = restore(archive, state)
    assert code == JobError.exit_code
    assert "not empty" in answer["error"]
    assert files_under(state) == {"jobs/mine": b"mine"}
    (state / "jobs" / "mine").unlink()
    (state / "jobs").rmdir()
    assert restore(archive, state)[0] == 0  # an empty one is fine


@pytest.mark.parametrize("where", ["file", "file/state"])
def test_where_no_state_directory_can_be_made_it_is_said(tmp_path: Path, archive: Path, where: str) -> None:
    (tmp_path / "file").write_text("x")
    code, answer = restore(archive, tmp_path / where)
    assert code in (StorageError.exit_code, JobError.exit_code, ConfigError.exit_code)
    assert "file" in answer["error"]
    assert files_under(tmp_path) == {"file": b"x"}


def test_a_full_disk_is_not_called_a_damaged_backup(tmp_path: Path, archive: Path) -> None:
    """A file-size limit stands for a full disk."""
    program = (
        "import resource, signal, sys; from server.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["backup", "restore", str(archive), "--state-dir", str(tmp_path / "state"), "--format", "json"]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == StorageError.exit_code, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert "damaged" not in answer["error"]
    assert left_beside(tmp_path / "state") == set()


def test_a_backup_is_never_overwritten_and_no_half_one_is_left(tmp_path: Path, archive: Path) -> None:
    state = archive.parent / "server"
    out = tmp_path / "old.tar"
    out.write_bytes(b"older")
    code, answer = create(state, out)
    assert code == StorageError.exit_code
    assert "exists" in answer["error"]
    assert out.read_bytes() == b"older"
    for where in (tmp_path / "nowhere" / "b.tar", out / "b.tar"):
        assert create(state, where)[0] == StorageError.exit_code
    assert files_under(tmp_path) == {"old.tar": b"older"}


def test_without_a_ledger_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    code, answer = create(tmp_path / "state", tmp_path / "b.tar")
    assert code == JobError.exit_code
    assert "no ledger" in answer["error"]
    assert list(tmp_path.iterdir()) == []


def test_a_state_without_the_adapter_of_its_job_says_which_is_lost(tmp_path: Path, archive: Path) -> None:
    """No other attempt helps: the file is not away because the server went on."""
    assert restore(archive, tmp_path / "state")[0] == 0
    with closing(Ledger(tmp_path / "state" / LEDGER_FILE, read_only=True)) as ledger:
        lost = queries.closed_rounds(ledger, "job")[-1].result_sha256
    (tmp_path / "state" / "blobs" / lost).unlink()
    code, answer = create(tmp_path / "state", tmp_path / "b.tar")
    assert code in (StorageError.exit_code, JobError.exit_code)
    assert lost[:12] in answer["error"]
    assert "pause" not in answer["hint"]
    assert not (tmp_path / "b.tar").exists()
