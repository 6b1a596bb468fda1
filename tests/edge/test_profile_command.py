"""Profiles and board facts: what may be in one, what a board's files say, and one that is really measured."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edge_runtime import cli as edge_cli
from edge_runtime.bundle.folder import Bundle
from edge_runtime.device.board import Board
from edge_runtime.errors import ProfileError
from edge_runtime.host.sysfs import Sysfs
from edge_runtime.host.threads import usable_threads
from edge_runtime.protocol.profile import Profile, latency_s
from edge_runtime.protocol.profile_check import decode_profile, encode_profile, missing_graphs

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def profile(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Profile:
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    arguments = [
        "profile",
        "--bundle",
        str(tiny_bundle.path),
        "--seconds",
        "0.01",
        "--shapes",
        "1x8,2x16",
        "--output",
        str(path),
        "--format",
        "json",
    ]
    assert edge_cli.main(arguments) == 0
    return decode_profile(path.read_bytes())


def test_every_graph_of_a_bundle_is_measured(profile: Profile, tiny_bundle: Bundle) -> None:
    assert profile.source == "measured"
    assert missing_graphs(profile, tiny_bundle.manifest, tiny_bundle.sha256) == []
    for graph in profile.graphs:
        assert [(x.batch_size, x.tokens) for x in graph.latencies] == [(1, 8), (2, 16)]
        assert all((x.count or 0) >= 5 for x in graph.latencies)
        assert (graph.peak_rss_bytes or 0) > 10e6
        assert latency_s(graph, 2, 32) == pytest.approx(2 * graph.latencies[1].median_s)
    assert (profile.rates.replay_parameters_per_s or 0) > 0
    # It was measured with as many threads as may run at once, and says how many these were.
    assert profile.measured is not None
    assert profile.measured.threads == usable_threads().count


def test_what_is_missing_or_of_another_bundle_is_said(profile: Profile, tiny_bundle: Bundle) -> None:
    fewer = msgspec.structs.replace(profile, graphs=[g for g in profile.graphs if g.kind != "predict"])
    assert missing_graphs(fewer, tiny_bundle.manifest, tiny_bundle.sha256) == ["predict"]
    with pytest.raises(ProfileError, match="not of abab"):
        missing_graphs(profile, tiny_bundle.manifest, "ab" * 32)


@pytest.mark.parametrize("value", [0, -1.0, "NaN", None, 1e400, 1e9], ids=str)
def test_times_that_cannot_be_are_refused(profile: Profile, value: object) -> None:
    fields = json.loads(encode_profile(profile))
    fields["graphs"][0]["latencies"][0]["median_s"] = value
    with pytest.raises(ProfileError):
        decode_profile(json.dumps(fields).encode())


def test_a_profile_is_measured_or_modelled(profile: Profile) -> None:
    with pytest.raises(ProfileError, match="either measured or modelled"):
        decode_profile(encode_profile(msgspec.structs.replace(profile, measured=None)))


def test_what_a_board_does_not_say_is_none(tmp_path: Path) -> None:
    reading = Board(Sysfs(tmp_path), run=lambda _command: None).read()
    assert set(msgspec.structs.asdict(reading).values()) == {None}
