"""Profiles on the server: valid ones are kept with their history, bad ones refused, and all shown and compared."""

from __future__ import annotations

import dataclasses
import json
import logging
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from profiles import made_profile, payload_of

from edge_runtime.errors import ConfigError, ProfileError
from edge_runtime.network.transport import Message
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import DeviceState
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from edge_runtime.protocol.topics import topic_for
from server.cli import main
from server.compose import compose, open_stores
from server.evaluation import InlineEvaluator
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import Job, JobBandit, JobStld
from server.profiles.board_model import model_profile, read_board
from server.profiles.compare import compare
from server.profiles.received import ProfileStore, profile_history
from server.rounds.services import Services
from server.simulation.boards import modelled_profiles
from server.simulation.bowl import Bowl
from server.simulation.presence import FLEET
from server.simulation.virtual import VirtualTransport, VirtualWorld
from server.storage.device_writes import PROFILES_KEPT
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.protocol.profile import Profile

pytestmark = pytest.mark.timeout(240)  # the first test to ask for the bundle exports it


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / LEDGER_FILE, durable=False)


class StoreOfOneBundle(ProfileStore):
    """A fleet's profiles; what is asked for is the bundle's."""

    def __init__(self, ledger: Ledger, bundle: Bundle, fleet: str = "default") -> None:
        super().__init__(fleet, ledger)
        self.manifests[bundle.sha256] = bundle.manifest
        self.sha256 = bundle.sha256

    def after(self, payload: bytes) -> Profile | None:
        """Take a profile message; return the newest valid profile."""
        self.take("pi", payload)
        return self.newest("pi", self.sha256)


store_of = StoreOfOneBundle


def fitted_to(bundle: Bundle) -> FittedJob:
    return fit_to_bundle(Job(name="job", eval_file=""), bundle.manifest, bundle.sha256)


def states(ledger: Ledger) -> list[str]:
    return [row["state"] for row in profile_history(ledger, "pi")]


# -- the store ------------------------------------------------------------------------------------------------------


def test_the_newest_profile_survives_a_restart(tiny_bundle: Bundle, tmp_path: Path) -> None:
    first, second = made_profile(tiny_bundle), made_profile(tiny_bundle, 2.0)
    path = tmp_path / LEDGER_FILE
    for _ in range(2):  # retained: it comes again with the second server
        ledger = Ledger(path, durable=False)
        store = store_of(ledger, tiny_bundle)
        assert store.after(payload_of(first)) == first
        ledger.close()
    ledger = Ledger(path)
    assert states(ledger) == ["valid"]
    assert store_of(ledger, tiny_bundle).after(payload_of(second)) == second
    ledger.close()
    ledger = Ledger(path)
    assert store_of(ledger, tiny_bundle).newest("pi", tiny_bundle.sha256) == second
    assert store_of(ledger, tiny_bundle).newest("other", tiny_bundle.sha256) is None
    assert states(ledger) == ["valid", "valid"]


def altered(profile: Profile, median_s: Any) -> bytes:
    message = msgspec.msgpack.decode(payload_of(profile))
    message["profile"]["graphs"][0]["latencies"][0]["median_s"] = median_s
    return msgspec.msgpack.encode(message)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("negative", "> 0"),
        ("zero", "> 0"),
        ("nan", ""),
        ("infinite", "<= "),
        ("missing", "median_s"),
        ("in another's name", "profile of eve"),
        ("nothing measured", "no time of any graph"),
        ("noise", "cannot be read"),
        ("clock", "a clock jumped"),
        ("percentiles", "not between the percentiles"),
        ("neither", "either measured or"),
    ],
)
def test_bad_profiles_are_refused_with_a_reason(
    case: str, reason: str, tiny_bundle: Bundle, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    good = made_profile(tiny_bundle)
    store = store_of(ledger, tiny_bundle)
    assert store.after(payload_of(good)) == good
    assert good.measured is not None
    quick = msgspec.structs.replace(good.measured, seconds=0.001, wall_seconds=0.001)
    graph = good.graphs[0]
    wrong = msgspec.structs.replace(graph.latencies[0], low_s=1.0)
    without = [msgspec.structs.replace(g, latencies=[], note="too large") for g in good.graphs]
    payload = {
        "negative": lambda: altered(good, -1.0),
        "zero": lambda: altered(good, 0),
        "nan": lambda: altered(good, float("nan")),
        "infinite": lambda: altered(good, float("inf")),
        "missing": lambda: altered(good, None),
        "in another's name": lambda: payload_of(good, "eve"),
        "nothing measured": lambda: payload_of(msgspec.structs.replace(good, graphs=without)),
        "noise": lambda: b"\xff\x00noise",
        "clock": lambda: payload_of(msgspec.structs.replace(made_profile(tiny_bundle, 500.0), measured=quick)),
        "percentiles": lambda: payload_of(
            msgspec.structs.replace(good, graphs=[msgspec.structs.replace(graph, latencies=[wrong])])
        ),
        "neither": lambda: payload_of(msgspec.structs.replace(good, measured=None)),
    }[case]()
    with caplog.at_level(logging.WARNING):
        assert store.after(payload) == good
    assert "refused" in caplog.text
    assert reason in caplog.text
    refused = profile_history(ledger, "pi")[-1]
    assert (refused["state"], refused["source"]) == ("refused", None)
    assert reason in refused["remarks"][0]
    assert store.newest("pi", store.sha256) == good


def test_a_profile_of_another_bundle_waits_for_its_jobs(
    tiny_bundle: Bundle, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_of(ledger, tiny_bundle)
    ours, theirs = made_profile(tiny_bundle), made_profile(tiny_bundle, 3.0)
    theirs = msgspec.structs.replace(theirs, bundle=msgspec.structs.replace(theirs.bundle, sha256="ab" * 32))
    store.take("pi", payload_of(ours))
    assert store.after(payload_of(theirs)) == ours
    assert "no job here trains its bundle" in caplog.text
    fitted = fitted_to(tiny_bundle)
    other = dataclasses.replace(fitted, bundle_sha256="ab" * 32)
    assert ProfileStore("default", ledger).newest("pi", other.bundle_sha256) == theirs
    assert ProfileStore("elsewhere", ledger).newest("pi", fitted.bundle_sha256) is None


def test_what_can_be_used_is_used_with_a_remark(
    tiny_bundle: Bundle, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    profile = made_profile(tiny_bundle)
    assert profile.measured is not None
    jumped = msgspec.structs.replace(profile.measured, wall_seconds=-5000.0)
    fewer = [graph for graph in profile.graphs if graph.kind != "predict"]
    profile = msgspec.structs.replace(profile, measured=jumped, graphs=fewer)
    store = store_of(ledger, tiny_bundle)
    assert store.after(payload_of(profile)) == profile
    assert "the wall clock moved -5000 s" in caplog.text
    assert "says nothing of predict" in caplog.text
    assert len(profile_history(ledger, "pi")[0]["remarks"]) == 2
    caplog.clear()
    store.take("pi", payload_of(profile))
    assert not caplog.text  # retained: said once


def test_a_device_that_publishes_on_and_on_fills_no_disk(tiny_bundle: Bundle, ledger: Ledger) -> None:
    store = store_of(ledger, tiny_bundle)
    good = made_profile(tiny_bundle)
    store.take("pi", payload_of(good))
    for index in range(PROFILES_KEPT + 5):
        store.take("pi", b"%d" % index)
    assert states(ledger) == ["valid"] + ["refused"] * PROFILES_KEPT
    for index in range(PROFILES_KEPT + 5):
        last = made_profile(tiny_bundle, 1.0 + index)
        store.take("pi", payload_of(last))
    assert states(ledger).count("valid") == PROFILES_KEPT
    assert store.newest("pi", store.sha256) == last


def test_a_server_that_starts_anew_plans_with_what_it_knew(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """The broker has lost its retained messages: only the device's state arrives."""
    bowl = Bowl(12, [8], [2, 4, 6, 9, 12], 1, np.random.Generator(np.random.PCG64(0)))
    profile = modelled_profiles()[0]
    profile = msgspec.structs.replace(profile, bundle=msgspec.structs.replace(profile.bundle, sha256=bowl.sha256))
    ledger = Ledger(tmp_path / LEDGER_FILE)
    job = Job(name="job", eval_file="", split=8, stld=JobStld(), bandit=JobBandit())
    fitted = FittedJob.unchecked(job, bowl.manifest, bowl.sha256)
    ProfileStore(FLEET, ledger).take("pi", payload_of(profile))
    ledger.close()

    stores, world = open_stores(tmp_path), VirtualWorld()
    transport = VirtualTransport(world, lambda _topic, _payload: None)
    services = Services(transport, stores.uploads, InlineEvaluator(bowl.evaluate), world.clock, "http://x")
    composed = compose(FLEET, fitted, bowl, stores, lambda: services, lambda _event: None)
    state = encode_message(DeviceState(state="online", boot_id="1"))
    world.at(0.0, Message(topic_for(FLEET, "pi", "state"), state))
    assert not composed.run(lambda: world.delivered == 1)
    assert composed.job_run.devices()["pi"].profile == profile


# -- covey profile --------------------------------------------------------------------------------------------------


@pytest.fixture
def boards(tiny_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder of boards: one that was measured, one with public figures."""
    folder = tmp_path / "device_profiles"
    (folder / "made-up").mkdir(parents=True)
    (folder / "made-up/latency.json").write_bytes(encode_profile(made_profile(tiny_bundle)))
    (folder / "paper").mkdir()
    figures = {
        "cores": 4,
        "clock_hz": 1e9,
        "flop_per_cycle": 8,
        "arithmetic_share": 0.5,
        "bandwidth_bytes_per_s": 1e10,
        "bandwidth_share": 0.25,
    }
    head = 'board = "paper"\nmodel = "Paper"\ncpu = "x"\nmachine = "y"\nassumptions = ["none"]\n'
    tables = "".join(f'[{k}]\nvalue = {v}\nurl = "https://example.org"\n' for k, v in figures.items())
    (folder / "paper/board.toml").write_text(head + tables)
    return folder


def covey(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: str) -> Any:
    """Run ``covey profile`` and return its JSON; the code of an error."""
    where = ["--dir", str(folder), "--state-dir", str(folder.parent / "state"), "--format", "json"]
    code = main(["profile", *arguments, *where])
    answer = json.loads(capsys.readouterr().out)
    return answer if code == 0 else (code, answer["error"])


def test_a_board_is_modelled_by_its_arithmetic_and_its_bandwidth(boards: Path, tiny_bundle: Bundle) -> None:
    """Arithmetic 1e11 / (4 · 1e9 · 8 · 0.5) = 6.25, bandwidth 1e10 / (1e10 · 0.25) = 4, reading 2e6 / 1e10 = 0.2 ms."""
    reference = made_profile(tiny_bundle)
    modelled = model_profile(read_board(boards / "paper/board.toml"), reference)
    assert modelled.source == "modelled"
    for ours, theirs in zip(modelled.graphs, reference.graphs, strict=True):
        for x, y in zip(ours.latencies, theirs.latencies, strict=True):
            assert x.median_s == pytest.approx(6.25 * (y.median_s - 2e-4) + 4 * 2e-4, rel=1e-3)
            assert (x.low_s, x.high_s, x.count) == (None, None, None)
    assert modelled.modelled is not None
    assert {source.url for source in modelled.modelled.sources} == {"https://example.org"}
    assert decode_profile(encode_profile(modelled)) == modelled
    with pytest.raises(ProfileError, match="cannot be a reference"):
        model_profile(read_board(boards / "paper/board.toml"), modelled)


def test_modelled_profiles_are_marked_in_every_row(
    boards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert covey(capsys, boards, "model", "--reference", "made-up")["modelled"] == ["paper"]
    found = covey(capsys, boards, "compare", "made-up", "paper", "--plot", str(tmp_path / "out.png"))
    assert {(row["profile"], row["source"]) for row in found["rows"]} == {
        ("made-up", "measured"),
        ("paper", "modelled"),
    }
    assert all(6.0 < row["times_first"] < 6.25 for row in found["rows"] if row["profile"] == "paper")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert main(["profile", "show", "paper", "--dir", str(boards), "--plot", str(tmp_path / "one.png")]) == 0
    table = capsys.readouterr().out.split("\n\n")[1].splitlines()
    assert len(table) > 5
    assert all("modelled" in line for line in table[1:])
    assert (tmp_path / "one.png").exists()
    assert covey(capsys, boards, "show", "made-up")["source"] == "measured"


def test_import_keeps_what_was_measured(
    boards: Path, tiny_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    covey(capsys, boards, "model", "--reference", "made-up")
    file = tmp_path / "new.json"
    file.write_bytes(encode_profile(made_profile(tiny_bundle, 2.0)))
    path = boards / "paper/latency.json"
    assert covey(capsys, boards, "import", str(file), "--board", "paper")["changed"] is True
    kept = decode_profile(path.read_bytes())
    assert (kept.source, kept.device, kept.facts.board) == ("measured", None, "paper")
    assert covey(capsys, boards, "import", str(file), "--board", "paper")["changed"] is False
    file.write_bytes(encode_profile(made_profile(tiny_bundle, 3.0)))
    code, error = covey(capsys, boards, "import", str(file), "--board", "paper")
    assert (code, "is there, and measured" in error) == (ConfigError.exit_code, True)
    assert decode_profile(path.read_bytes()) == kept
    assert covey(capsys, boards, "model", "--reference", "made-up") == {"modelled": [], "measured": ["paper"]}
    assert covey(capsys, boards, "import", str(file), "--board", "paper", "--replace")["changed"] is True


def test_a_device_is_found_in_the_ledger(boards: Path, tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = Ledger(boards.parent / "state" / LEDGER_FILE)
    for fleet in ("barn", "house"):
        store = store_of(ledger, tiny_bundle, fleet)
        store.take("pi", payload_of(made_profile(tiny_bundle, board=fleet)))
        store.take("pi", b"noise")
    ledger.close()
    code, error = covey(capsys, boards, "import", "pi")
    assert (code, "of barn and of house" in error) == (ConfigError.exit_code, True)
    assert covey(capsys, boards, "import", "pi", "--fleet", "barn")["board"] == "barn"
    assert covey(capsys, boards, "show", "barn")["profile"]["device"] is None
    rows = covey(capsys, boards, "history", "pi", "--fleet", "house")["profiles"]
    assert [row["state"] for row in rows] == ["valid", "refused"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "nowhere"], "no profile nowhere"),
        (["import", "made-up", "--board", "No Board"], "'No Board'"),
        (["compare", "made-up", "made-up", "--shape", "9x9"], "9x9"),
        (["model", "nowhere", "--reference", "made-up"], "board.toml"),
        (["show", "made-up", "--plot", "out.nonsense"], "ending"),
        (["show", "paper/board.toml"], "not valid"),
        (["model", "--reference", "nowhere"], "no profile nowhere"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, boards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = covey(capsys, boards, *arguments)
    assert code == ConfigError.exit_code
    assert message in error


def test_different_models_are_not_compared(tiny_bundle: Bundle) -> None:
    one = made_profile(tiny_bundle)
    other = msgspec.structs.replace(one, bundle=msgspec.structs.replace(one.bundle, model="another"))
    with pytest.raises(ProfileError, match="different models"):
        compare([("a", one), ("b", other)])
    without = msgspec.structs.replace(one, graphs=one.graphs[:1])
    rows = compare([("a", one), ("b", without)])
    assert {row["graph"] for row in rows} == {one.graphs[0].name}
