"""``covey provision ssh`` on a real sshd: a board joins a real server over TLS, and its birth ends the command."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fleets import free_port, wait_for
from provisioning import Desk, board_wheels
from ssh_board import Board, require_board, ssh_board
from tiny_models import reviews, write_rows
from trusted import TrustedFleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle


API_PORT = free_port()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Bundle) -> Iterator[TrustedFleet]:
    require_board()
    made = TrustedFleet(tmp_path_factory.mktemp("fleet"), tiny_bundle)
    try:
        made.open("--api-port", str(API_PORT))
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages of a board with this machine's Python, fetched once."""
    return board_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def board(fleet: TrustedFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with ssh_board(tmp_path_factory.mktemp("board")) as made:
        yield made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    write_rows(reviews(12, 5), tmp_path / "mine.jsonl")
    return tmp_path / "mine.jsonl"


@pytest.mark.slow
def test_what_a_board_cannot_be_is_refused_before_anything_is_changed(
    fleet: TrustedFleet, board: Board, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, fleet, None)
    desk.provision(board, "pi", "--dry-run", user="guest", code=3)
    assert "may not become root" in desk.said
    assert "--ask-sudo" in desk.said
    desk.provision(board, "pi", "--dry-run", "--ask-sudo", user="asked", code=3, given="wrong\n")
    assert "may not become root" in desk.said
    found = desk.provision(board, "pi", "--dry-run", "--ask-sudo", user="asked", given="secret\n")
    assert [step["action"] for step in found["steps"]] == ["environment", "files", "join", "start"]
    assert not found["changed"]
    desk.provision(board, "pi", user="keeper", code=3)
    assert "--yes" in desk.said

    known = board.known_hosts.read_text()
    try:
        board.known_hosts.write_text("")
        desk.provision(board, "pi", "--dry-run", code=7)
        assert "host key of 127.0.0.1 is not known" in desk.said
        other = (board.key.with_suffix(".pub")).read_text().split()[:2]
        board.known_hosts.write_text(f"[127.0.0.1]:{board.port} {' '.join(other)}\n")
        desk.provision(board, "pi", "--dry-run", code=7)
        assert "has another host key than before" in desk.said
    finally:
        board.known_hosts.write_text(known)
    desk.provision(board, "pi", "--dry-run", user="nobody-here", code=3)
    assert "cannot log in" in desk.said
    desk.provision(board, "pi", "--dry-run", "--port", "1", code=7)
    assert "cannot be reached" in desk.said
    assert board.calls() == []
    assert board.shell("ls -d /opt/covey /var/lib/covey /opt/.covey-incoming 2>/dev/null || true") == ""


@pytest.mark.slow
def test_a_board_of_another_fleet_is_known_before_it_is_touched(
    fleet: TrustedFleet, board: Board, tmp_path: Path
) -> None:
    """Also where the server is elsewhere, so that its authority is not on this machine."""
    authority = (fleet.state_dir / "trust" / "ca.pem").read_text()
    other = TrustedFleet(tmp_path / "other", fleet.bundle)
    foreign = (other.state_dir / "trust" / "ca.pem").read_text()
    desk = Desk(tmp_path, fleet, None)
    remote = ["--server", f"http://127.0.0.1:{API_PORT}", "--token-file", str(fleet.state_dir / "api-token")]
    home = "/var/lib/covey"
    try:
        for text, code in ((foreign, 12), (authority, 0)):
            board.shell(
                f"mkdir -p {home}/edge-trust; touch {home}/edge-trust/cert.pem; "
                f"echo 'name = \"pi\"' > {home}/edge.toml; "
                f"cat > {home}/edge-trust/ca.pem <<'END'\n{text}END\n"
            )
            for flags in ([], remote):
                desk.provision(board, "pi", "--dry-run", *flags, code=code)
                assert ("another fleet" in desk.said) == (code == 12)
        assert board.calls() == []
    finally:
        board.shell(f"rm -rf {home}")
        other.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_board_is_provisioned_again_interrupted_and_uninstalled(
    fleet: TrustedFleet, board: Board, wheels: Path, rows: Path, tmp_path: Path
) -> None:
    desk = Desk(tmp_path, fleet, wheels)
    _interrupted(desk, board, rows)
    found = desk.provision(board, "pi", "--data", str(rows), "--yes")
    assert found["born"]
    assert [step["action"] for step in found["steps"]] == ["environment", "files", "rows", "join", "start"]
    (device,) = fleet.covey("device", "list")["devices"]
    assert (device["device"], device["state"]) == ("pi", "online")
    count = "wc -l < /var/lib/covey/data/rows.jsonl"
    assert int(board.shell(count)) == 12
    assert board.shell("stat -c '%U %a' /var/lib/covey/edge-trust/key.pem /var/lib/covey").split() == [
        *("covey", "600"),
        *("covey", "750"),
    ]
    assert board.shell("ps -o user= -C covey-edge | sort -u").split() in (["covey"], [])
    assert board.shell("ls -a /opt/covey /opt").find("join-token") == -1

    told, key = board.calls(), board.shell("sha256sum /var/lib/covey/edge-trust/key.pem")
    again = desk.provision(board, "pi", "--data", str(rows), "--yes")
    assert (again["steps"], again["changed"], again["born"]) == ([], False, True)
    assert board.calls() == told  # a second run changes nothing

    write_rows(reviews(15, 6), rows)
    more = desk.provision(board, "pi", "--data", str(rows), "--yes")
    assert [step["action"] for step in more["steps"]] == ["rows", "start"]
    assert more["born"]
    assert int(board.shell(count)) == 15
    assert board.shell("sha256sum /var/lib/covey/edge-trust/key.pem") == key

    desk.provision(board, "another", "--yes", code=3)
    assert "the board is device pi already" in desk.said
    desk.provision(board, "another", "--uninstall", "--yes", code=3)
    with ssh_board(tmp_path / "second") as second:
        desk.provision(second, "pi", "--yes", code=12)
        assert "the fleet has a device pi already" in desk.said

    assert [step["action"] for step in desk.provision(board, "pi", "--uninstall", "--yes")["steps"]] == [
        "stop",
        "remove",
    ]
    assert board.shell("ls -d /opt/covey /etc/systemd/system/covey-* 2>/dev/null || true") == ""
    assert board.shell("sha256sum /var/lib/covey/edge-trust/key.pem") == key  # identity and rows are kept
    assert desk.provision(board, "pi", "--uninstall", "--yes")["steps"] == []
    back = desk.provision(board, "pi", "--yes")
    assert back["born"]
    assert "join" not in [step["action"] for step in back["steps"]]
    assert desk.provision(board, "pi", "--uninstall", "--purge", "--yes")["changed"]
    assert board.shell("ls -d /var/lib/covey 2>/dev/null; getent passwd covey || true") == ""


def _interrupted(desk: Desk, board: Board, rows: Path) -> None:
    """Kill the command while it sends; the board is left without half of anything."""
    command = desk.command(board, "pi", "--data", str(rows), "--yes")
    with (desk.folder / "killed.err").open("wb") as err:
        process = subprocess.Popen(command, stderr=err, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: process.poll() is not None or (board.root / "opt/.covey-incoming").is_dir(), "sending", 300)
    finally:
        assert process.poll() is None, (desk.folder / "killed.err").read_text()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: "incoming" not in board.shell("ls -a /opt"), "end on the board", 60)
