"""Devices join a fleet over real TLS connections: once for each token, and approved where that is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joining import Site, joined, joining_again, joining_site, options
from repository import ROOT

from edge_runtime.agent.config import read_edge_config
from edge_runtime.cli import main as edge
from edge_runtime.errors import ConfigError, CoveyError, EnrolmentError, NetworkError
from edge_runtime.trust.exchange import NotNowError
from edge_runtime.trust.folder import IdentityFolder
from edge_runtime.trust.identity import read_identity
from edge_runtime.trust.join import join
from edge_runtime.trust.keys import name_of, serial_of
from edge_runtime.trust.renew import renew_if_due
from edge_runtime.trust.token import decode_token, encode_token
from edge_runtime.trust.validity import ClockError
from server.storage import trust_queries

DAY_S = 86400.0


# -- joining -----------------------------------------------------------------------------------------------------------


def test_a_device_joins_and_its_configuration_can_be_used(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    edge_fields = joined(site.token("pi-a"), config)
    assert (edge_fields.name, edge_fields.broker) == ("pi-a", "mqtt://127.0.0.1:1883")
    read = read_edge_config(config)
    assert (read.name, read.fleet, read.server_url) == ("pi-a", "default", "http://127.0.0.1:8080")
    assert read.tls is not None
    own = read_identity(IdentityFolder(config).path)
    assert name_of(own.certificate) == "pi-a"
    assert read.tls.key_file == str(own.folder / "key.pem")
    assert stat.S_IMODE((own.folder / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(own.folder.stat().st_mode) == 0o700
    known = trust_queries.find_certificate(site.ledger, serial_of(own.certificate))
    assert known is not None
    assert (known.device, known.revoked_at) == ("pi-a", None)
    left = {path.name for path in config.parent.iterdir()}
    assert left == {"edge.toml", "edge-trust"}


def test_the_private_key_never_leaves_the_device(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-a"), config)
    key = (IdentityFolder(config).path / "key.pem").read_text().splitlines()[1]
    for path in site.trust.folder.parent.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_the_same_command_again_changes_nothing(site: Site, tmp_path: Path) -> None:
    config, token = tmp_path / "pi" / "edge.toml", site.token("pi-a")
    joined(token, config)
    before = {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()}
    joined(token, config)
    site.now_s += 2 * 3600
    joined(token, config)
    assert {path: path.read_bytes() for path in config.parent.rglob("*") if path.is_file()} == before


def test_a_token_is_used_by_one_key_only(site: Site, tmp_path: Path) -> None:
    token = site.token("pi-a")
    joined(token, tmp_path / "first" / "edge.toml")
    with pytest.raises(EnrolmentError, match="has been used already, with another key") as refused:
        joined(token, tmp_path / "second" / "edge.toml")
    assert "covey device revoke pi-a" in refused.value.hint
    assert not (tmp_path / "second" / "edge.toml").exists()
    assert len(trust_queries.certificates_of(site.ledger, "default", "pi-a")) == 1


def test_an_expired_token_is_refused(site: Site, tmp_path: Path) -> None:
    token = site.token("pi-a", valid_s=60)
    site.now_s += 61
    with pytest.raises(EnrolmentError, match=r"expired at .* by the server's clock"):
        joined(token, tmp_path / "pi" / "edge.toml")


def test_a_token_of_another_fleet_sends_no_secret(site: Site, tmp_path: Path) -> None:
    with joining_site(tmp_path / "other") as other:
        token = decode_token(other.token("pi-a"))
        wrong = encode_token(msgspec.structs.replace(token, server_url=site.url))
        with pytest.raises(EnrolmentError, match="belongs to another authority"):
            joined(wrong, tmp_path / "pi" / "edge.toml")
        unknown = msgspec.structs.replace(token, server_url=site.url, authority_sha256=site.trust.authority.sha256)
        with pytest.raises(EnrolmentError, match="has no such join token"):
            joined(encode_token(unknown), tmp_path / "pi" / "edge.toml")


@given(at=st.integers(0, 23), bit=st.integers(0, 7))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_secret_with_a_flipped_bit_is_refused(shared: Site, tmp_path: Path, at: int, bit: int) -> None:
    token = decode_token(shared.token("flip"))
    secret = bytearray(token.secret)
    secret[at] ^= 1 << bit
    with pytest.raises(EnrolmentError, match="no such join token"):
        joined(encode_token(msgspec.structs.replace(token, secret=bytes(secret))), tmp_path / "pi" / "edge.toml")
    assert trust_queries.certificates_of(shared.ledger, "default", "flip") == []


def test_a_request_for_another_name_is_refused(site: Site, tmp_path: Path) -> None:
    token = msgspec.structs.replace(decode_token(site.token("pi-a")), device="pi-b")
    with pytest.raises(EnrolmentError, match="the token is for the name pi-a"):
        joined(encode_token(token), tmp_path / "pi" / "edge.toml")


def test_joining_again_revokes_the_certificate_of_the_lost_device(site: Site, tmp_path: Path) -> None:
    joined(site.token("pi-a"), tmp_path / "old" / "edge.toml")
    joined(site.token("pi-a"), tmp_path / "new" / "edge.toml")
    with pytest.raises(EnrolmentError, match="joined again"):
        renew_if_due(tmp_path / "old" / "edge.toml", time.time(), is_due=True)
    assert renew_if_due(tmp_path / "new" / "edge.toml", time.time(), is_due=True) is not None


def test_another_configuration_is_not_overwritten(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text('name = "mine"\nbroker = "mqtt://b"\nthreads = 2 # two\n[data]\npath = "x.csv"\n')
    before, token = config.read_bytes(), site.token("pi-a")
    with pytest.raises(ConfigError, match="its name is another one"):
        joined(token, config)
    assert config.read_bytes() == before
    kept = trust_queries.find_token(site.ledger, decode_token(token).id.hex())
    assert kept is not None
    assert kept.state == "open"  # it was not used up
    joined(token, config, may_change=True)
    read = read_edge_config(config)
    assert (read.name, read.threads, Path(read.data.path).name) == ("pi-a", 2, "x.csv")
    assert (tmp_path / "edge.toml.before-join").read_bytes() == before


def test_a_second_identity_replaces_the_first_and_keeps_it(site: Site, tmp_path: Path) -> None:
    config = tmp_path / "pi" / "edge.toml"
    joined(site.token("pi-a"), config)
    first = (config.parent / "edge-trust" / "key.pem").read_bytes()
    (config.parent / "edge-trust" / "identity.json").write_bytes(b"")  # a damaged one keeps nobody from joining
    joined(site.token("pi-a"), config)
    assert (config.parent / "edge-trust" / "key.pem").read_bytes() != first
    assert (config.parent / "edge-trust.before" / "key.pem").read_bytes() == first


# -- clocks and networks that are not there yet ------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-56.8, -10, 25])
def test_a_wrong_clock_is_named_and_the_join_goes_on_when_it_is_set(site: Site, tmp_path: Path, years: float) -> None:
    clock, waits = [time.time() + years * 365.25 * DAY_S], []

    def wait(pause_s: float) -> bool:
        waits.append(pause_s)
        if len(waits) == 3:
            clock[0] = time.time()
        return True

    config, token = tmp_path / "pi" / "edge.toml", site.token("pi-a")
    with pytest.raises(ClockError, match="this machine's clock says"):
        join(options(token, config), lambda: clock[0], lambda _pause_s: False)
    join(options(token, config), lambda: clock[0], wait)
    assert waits == [1.0, 2.0, 4.0]
    assert read_edge_config(config).name == "pi-a"


def test_a_server_that_starts_later_is_waited_for(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state") as site:
        token = site.token("pi-a")
        port = int(site.url.rpartition(":")[2])
    with pytest.raises(NotNowError, match=str(port)):
        join(options(token, tmp_path / "pi" / "edge.toml"), time.time, lambda _pause_s: False)
    with contextlib.ExitStack() as stack:

        def wait(_pause_s: float) -> bool:
            stack.enter_context(joining_again(tmp_path / "state", port))
            return True

        join(options(token, tmp_path / "pi" / "edge.toml"), time.time, wait)
    assert read_edge_config(tmp_path / "pi" / "edge.toml").name == "pi-a"


def test_an_address_that_the_servers_certificate_is_not_for_is_final(site: Site, tmp_path: Path) -> None:
    waits: list[float] = []
    found = msgspec.structs.replace(
        decode_token(site.token("pi-a")), server_url=site.url.replace("127.0.0.1", "127.0.0.2")
    )
    port = int(site.url.rpartition(":")[2])
    with (
        joining_again(site.trust.folder.parent, port, host="127.0.0.2"),
        pytest.raises(NetworkError, match="for another name") as refused,
    ):
        join(
            options(encode_token(found), tmp_path / "pi" / "edge.toml"),
            time.time,
            lambda pause_s: bool(waits.append(pause_s)),
        )
    assert refused.value.hint
    assert waits == []


# -- approval ----------------------------------------------------------------------------------------------------------


def test_a_device_waits_until_the_operator_approves(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state", needs_approval=True) as site:
        token, config = site.token("pi-a"), tmp_path / "pi" / "edge.toml"
        with pytest.raises(NotNowError, match="waits for the operator's approval") as waiting:
            joined(token, config)
        assert "covey device approve pi-a" in waiting.value.hint
        (pending,) = trust_queries.pending_joins(site.ledger, "default")
        assert (pending.device, pending.address) == ("pi-a", "127.0.0.1")
        assert pending.facts is not None
        assert pending.facts["host"] == "board"
        assert pending.key_sha256 in waiting.value.what
        with pytest.raises(EnrolmentError, match="another key"):  # who has copied the token cannot slip in between
            joined(token, tmp_path / "thief" / "edge.toml")
        waits: list[float] = []

        def wait(pause_s: float) -> bool:
            waits.append(pause_s)
            if len(waits) == 2:
                site.ledger.join_decided("default", "pi-a", "approved")
            return True

        join(options(token, config), time.time, wait)
        assert waits == [5.0, 5.0]
        assert trust_queries.pending_joins(site.ledger, "default") == []


def test_a_device_that_is_rejected_or_comes_too_late_does_not_join(tmp_path: Path) -> None:
    with joining_site(tmp_path / "state", needs_approval=True) as site:
        rejected, late = site.token("pi-a"), site.token("pi-b", valid_s=60)
        for token, name in ((rejected, "a"), (late, "b")):
            with pytest.raises(NotNowError):
                joined(token, tmp_path / name / "edge.toml")
        site.ledger.join_decided("default", "pi-a", "rejected")
        with pytest.raises(EnrolmentError, match="has rejected"):
            joined(rejected, tmp_path / "a" / "edge.toml")
        site.now_s += 61
        with pytest.raises(EnrolmentError, match="expired"):
            joined(late, tmp_path / "b" / "edge.toml")


def test_a_disk_that_is_full_is_no_reason_to_lose_the_token(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, config = site.token("pi-a"), tmp_path / "pi" / "edge.toml"
    fsync, count = os.fsync, [0]

    def full(descriptor: int) -> None:
        count[0] += 1
        if count[0] == at:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for at in range(1, 12):  # noqa: B007 full reads it
        count[0] = 0
        try:
            joined(token, config)
        except CoveyError as error:
            assert error.exit_code == 8  # noqa: PT017
    at = 0
    joined(token, config)
    assert read_edge_config(config).name == "pi-a"


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", str(tmp_path / "edge.toml")]
    assert edge(["join", *config]) == ConfigError.exit_code
    assert edge(["join", "covey1-AAAA", *config]) == ConfigError.exit_code
    assert edge(["join", "--token-file", str(tmp_path / "none"), *config]) == ConfigError.exit_code
    assert edge(["renew", *config]) == ConfigError.exit_code
    said = capsys.readouterr().err
    assert "covey1-AAAA" not in said
    assert said.count("what to do:") == 4


def test_the_command_joins_and_prints_no_secret(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, word = tmp_path / "edge.toml", site.token("pi-a")
    (tmp_path / "token").write_text(f"{word}\n")
    code = edge(
        ["join", site.url, "--token-file", str(tmp_path / "token"), "--config", str(config), "--format", "json"]
    )
    out, err = capsys.readouterr()
    assert code == 0
    assert json.loads(out)["name"] == "pi-a"
    assert decode_token(word).secret.hex() not in out + err
    assert word not in out + err
    assert edge(["renew", "--now", "--config", str(config)]) == 0


# -- power cuts --------------------------------------------------------------------------------------------------------


def run_kills(site: Site, folder: Path, step: int, most: int) -> list[tuple[int, int]]:
    """Kill joins at each STEP-th line, and let each go on; return the lines and how the killed processes ended."""
    words = list(site.tokens([f"pi-{number}" for number in range(most)]).values())
    (folder / "tokens").write_text("\n".join(words))
    program = [sys.executable, str(ROOT / "tests" / "support" / "join_kills.py"), str(folder / "tokens"), str(folder)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    done = subprocess.run(
        [*program, str(step)], capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    total, *lines = done.stdout.splitlines()
    assert int(total) <= step * (most - 1), f"{most} tokens are too few for {total} lines"
    kills = [(int(line.split()[0]), int(line.split()[1])) for line in lines]
    for number in range(1, len(kills) + 1):
        config = folder / str(number) / "edge.toml"
        joined(words[number], config)
        own = read_identity(IdentityFolder(config).path)
        assert read_edge_config(config).name == name_of(own.certificate) == f"pi-{number}"
        assert {path.name for path in config.parent.iterdir()} - {"edge.toml.tmp"} == {"edge.toml", "edge-trust"}
        assert len(trust_queries.certificates_of(site.ledger, "default", f"pi-{number}")) == 1
        assert renew_if_due(config, time.time(), asks_name=True) is None
    return kills


def test_a_join_that_is_killed_at_any_point_goes_on(site: Site, tmp_path: Path) -> None:
    kills = run_kills(site, tmp_path, step=20, most=30)
    assert len(kills) >= 20
    assert {status for _, status in kills} == {-9}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_join_that_is_killed_at_every_line_goes_on(site: Site, tmp_path: Path) -> None:
    kills = run_kills(site, tmp_path, step=1, most=600)
    assert {status for _, status in kills} == {-9}
