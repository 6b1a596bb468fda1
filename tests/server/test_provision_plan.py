"""What ``covey provision ssh`` decides: from what a board says, and from what ssh says, without a board."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from typing import Any

import pytest

from edge_runtime.errors import ConfigError, CoveyError, EnrolmentError, NetworkError, ProtocolError, StorageError
from server.provision.birth import find_device, is_born
from server.provision.facts import PROBE, Facts, read_facts, running_version
from server.provision.plan import Wanted, check_board, check_room, plan_install, plan_uninstall
from server.provision.ssh import Remote, SshOptions, ssh_error

NOW_S = 1_800_000_000
FILES = {"/opt/covey/setup.sh": "a" * 64, "/etc/systemd/system/covey-edge.service": "b" * 64}
PI: dict[str, str] = {
    "uid": "1000",
    "machine": "aarch64",
    "system": "Debian GNU/Linux 12 (bookworm)",
    "ids": "debian ",
    "architecture": "arm64",
    "glibc": "glibc 2.36",
    "systemd": "yes",
    "sudo": "free",
    "default_python": "3.11",
    "python": "3.11",
    "opt_free_kib": "20000000",
    "now_s": str(NOW_S),
}
WANTED = Wanted("pi", "e" * 64, FILES)


def facts_of(more: str = "", **changes: str) -> Facts:
    words = {**PI, **changes}
    text = "Welcome to the board!\n" + "".join(f"{key}={value}\n" for key, value in words.items())
    return read_facts(f"{text}end=public\n{more}", NOW_S)


def installed(device: str = "pi", **changes: str) -> Facts:
    """Return the facts of a board that is as it is to be."""
    note = base64.b64encode(json.dumps({"device": device, "environment": "e" * 64, "packages": []}).encode()).decode()
    slot = base64.b64encode(b'{"slot": "b", "version": "9.9", "sha256": "00"}').decode()
    edge = base64.b64encode(f'name = "{device}"\n'.encode()).decode()
    more = [f"note={note}", f"edge={edge}", "certificate=yes", f"running={slot}", "set_up=yes", "user=yes"]
    more += ["folder=yes", "home=yes", "enabled=yes", "active=yes"]
    more += [f"file={digest}  {path}" for path, digest in FILES.items()]
    more += [f"rows={'c' * 64}  /var/lib/covey/data/rows.jsonl"]
    return facts_of("\n".join([*more, "end=private"]), **changes)


def actions(facts: Facts, wanted: Wanted = WANTED) -> list[str]:
    return [step.action for step in plan_install(facts, wanted).steps]


def test_this_machine_says_what_it_is() -> None:
    said = subprocess.run(["sh", "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    facts = read_facts(said.stdout, NOW_S)
    assert {"uid", "machine", "glibc", "opt_free_kib", "now_s"} <= set(facts.words)
    assert facts.number("opt_free_kib") > 0


@pytest.mark.parametrize(
    ("changes", "kind", "what"),
    [
        ({"ids": "fedora rhel", "system": "Fedora"}, ConfigError, "neither Debian nor Ubuntu"),
        ({"ids": ""}, ConfigError, "neither Debian nor Ubuntu"),
        ({"machine": "armv7l"}, ConfigError, "armv7l"),
        ({"machine": "riscv64"}, ConfigError, "riscv64"),
        ({"architecture": "armhf"}, ConfigError, "64-bit kernel with a system of armhf"),
        ({"glibc": "glibc 2.27"}, ConfigError, "glibc 2.27"),
        ({"glibc": ""}, ConfigError, "not glibc"),
        ({"systemd": ""}, ConfigError, "does not run systemd"),
        ({"sudo": ""}, ConfigError, "sudo is not there"),
        ({"default_python": "3.9", "python": "3.9"}, ConfigError, "is 3.9"),
        ({"default_python": "", "python": ""}, ConfigError, "Covey runs on"),
        ({"python": "", "bare_python": "3.11"}, ConfigError, "no standard library"),
        ({"package": "install ok installed"}, ConfigError, "Debian package covey-edge"),
        ({"opt_free_kib": "1000"}, StorageError, "1 MB free"),
        ({"opt_free_kib": ""}, StorageError, "0 MB free"),
    ],
)
def test_boards_that_cannot_be_devices(changes: dict[str, str], kind: type[CoveyError], what: str) -> None:
    with pytest.raises(kind, match=what) as caught:
        check_board(facts_of(**changes))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("changes", "machine", "python"),
    [
        ({}, "aarch64", "3.11"),
        ({"machine": "x86_64", "architecture": "amd64"}, "x86_64", "3.11"),
        ({"ids": "ubuntu debian", "default_python": "3.10", "python": "3.10"}, "aarch64", "3.10"),
        ({"ids": "raspbian debian"}, "aarch64", "3.11"),
        ({"default_python": "3.9"}, "aarch64", "3.11"),
    ],
)
def test_packages_are_chosen_for_the_board(changes: dict[str, str], machine: str, python: str) -> None:
    target = check_board(facts_of(**changes))
    assert (target.machine, target.python) == (machine, python)


def test_a_new_board_gets_everything_and_one_that_is_ready_nothing() -> None:
    assert actions(facts_of()) == ["environment", "files", "join", "start"]
    assert actions(installed()) == []
    known = replace(WANTED, is_known=True)
    assert actions(installed(), known) == []
    assert actions(installed(), replace(known, may_replace=True)) == ["join", "start"]
    assert plan_install(installed(), WANTED).has_rows
    assert not (plan := plan_install(facts_of(), WANTED)).has_rows
    assert any("no rows" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("running", ["environment", "files", "start"]),
        ("set_up", ["start"]),
        ("active", ["start"]),
        ("enabled", ["start"]),
        ("certificate", ["join", "start"]),
        ("user", ["files", "start"]),
    ],
)
def test_what_an_interruption_left_out_is_done(lost: str, expected: list[str]) -> None:
    facts = installed()
    assert actions(replace(facts, words={key: word for key, word in facts.words.items() if key != lost})) == expected


def test_a_version_that_a_rollout_has_brought_stays() -> None:
    assert running_version(installed()) == "9.9"
    assert running_version(facts_of()) is None
    assert running_version(facts_of("running=bm9uc2Vuc2U=\nend=private\n")) is None


def test_only_what_differs_is_changed() -> None:
    facts = installed()
    assert actions(replace(facts, files={**FILES, "/opt/covey/setup.sh": "d" * 64})) == ["files", "start"]
    assert actions(facts, replace(WANTED, environment_id="f" * 64)) == ["environment", "files", "start"]
    path = "/var/lib/covey/data/rows.jsonl"
    assert actions(facts, replace(WANTED, rows_path=path, rows_sha256="c" * 64)) == []
    assert actions(facts, replace(WANTED, rows_path=path, rows_sha256="d" * 64)) == ["rows", "start"]
    assert actions(replace(facts, note={})) == ["environment", "files", "start"]


def test_names_and_fleets_are_not_mixed_up() -> None:
    with pytest.raises(EnrolmentError, match="has a device pi already") as caught:
        plan_install(facts_of(), replace(WANTED, is_known=True))
    assert "--replace" in caught.value.hint
    assert "join" in actions(facts_of(), replace(WANTED, is_known=True, may_replace=True))
    with pytest.raises(ConfigError, match="the board is device other already"):
        plan_install(installed("other"), WANTED)
    with pytest.raises(ConfigError, match="the board is device other already"):
        plan_install(installed("other"), replace(WANTED, may_replace=True))
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    facts = installed()
    there = replace(facts, words={**facts.words, "authority": base64.b64encode(pem.encode()).decode()})
    with pytest.raises(EnrolmentError, match="another fleet"):
        plan_install(there, replace(WANTED, authority=bytes(32)))
    with pytest.raises(ConfigError, match=r"rows in .*rows\.jsonl"):
        plan_install(facts, replace(WANTED, rows_path="/var/lib/covey/data/rows.csv", rows_sha256="d" * 64))
    with pytest.raises(ConfigError, match="not TOML"):
        plan_install(replace(facts, edge="name = "), WANTED)


def test_what_is_removed() -> None:
    facts = installed()
    assert [step.action for step in plan_uninstall(facts, "pi", is_purge=False).steps] == ["stop", "remove"]
    assert [step.action for step in plan_uninstall(facts, "pi", is_purge=True).steps] == ["stop", "remove", "purge"]
    assert plan_uninstall(facts_of(), "pi", is_purge=True).steps == ()
    with pytest.raises(ConfigError, match="is device pi, not other"):
        plan_uninstall(facts, "other", is_purge=True)


def test_room_and_clock() -> None:
    check_room(facts_of(opt_free_kib="1000"), 500_000, 500_000)
    with pytest.raises(StorageError, match="2 MB are needed"):
        check_room(facts_of(opt_free_kib="1000"), 1_000_000, 1_000_000)
    two = facts_of(opt_free_kib="1000", opt_disk="/dev/a", var_free_kib="2000", var_disk="/dev/b")
    check_room(two, 1_000_000, 2_000_000)
    with pytest.raises(StorageError, match="free for /opt/covey, and 2 MB"):
        check_room(two, 2_000_000, 1_000_000)
    with pytest.raises(StorageError, match="free for /var/lib/covey/update, and 3 MB"):
        check_room(two, 1_000_000, 3_000_000)
    notes = plan_install(facts_of(now_s=str(NOW_S - 86400)), WANTED).notes
    assert any("-86400 s off" in note for note in notes)


def test_a_board_that_did_not_finish_is_not_believed() -> None:
    for text in ("", "machine=x86_64\n", "This account is currently not available.\n"):
        with pytest.raises(ProtocolError):
            read_facts(text, NOW_S)
    assert facts_of("note=!!!\nedge=\nend=private\n").note == {}


@pytest.mark.parametrize(
    ("said", "kind", "what"),
    [
        ("ssh: connect to host h port 22: Connection refused", NetworkError, "cannot be reached"),
        ("ssh: connect to host h port 22: Connection timed out", NetworkError, "cannot be reached"),
        ("ssh: connect to host h port 22: No route to host", NetworkError, "cannot be reached"),
        ("ssh: Could not resolve hostname h: Name or service not known", NetworkError, "there is no host h"),
        ("No ED25519 host key is known for h and you have requested strict checking.", NetworkError, "not known here"),
        (
            "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.",
            NetworkError,
            "another",
        ),
        ("u@h: Permission denied (publickey).", ConfigError, "cannot log in"),
        ("client_loop: send disconnect: Broken pipe", NetworkError, "has ended"),
        ("", NetworkError, "ssh said nothing"),
    ],
)
def test_what_ssh_says_becomes_an_error_with_a_way_out(said: str, kind: type[CoveyError], what: str) -> None:
    error = ssh_error("u@h", said)
    assert isinstance(error, kind)
    assert what in error.what
    assert error.hint


@pytest.mark.parametrize("destination", ["-oProxyCommand=true", "u@-x", "", "a b", "u@h;reboot", "u@h\nx"])
def test_a_destination_is_never_a_flag_or_a_command(destination: str) -> None:
    with pytest.raises(ConfigError, match=r"is no USER@HOST"):
        Remote(SshOptions(destination))


def test_a_birth_counts_only_if_it_is_a_new_one_of_this_version() -> None:
    here: dict[str, Any] = {"fleet": "f", "device": "pi", "state": "online", "covey_version": "1", "last_seen": "b"}
    assert is_born(here, None, "1")
    assert is_born(here, {**here, "last_seen": "a"}, "1")
    assert not is_born(here, here, "1")
    assert not is_born({**here, "state": "offline"}, None, "1")
    assert not is_born(here, None, "2")
    assert not is_born(None, None, "1")
    assert find_device([here], "g", "pi") is None
    assert find_device([here], "f", "pi") == here
