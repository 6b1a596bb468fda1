"""Covey on a board, real or emulated: birth, training, deaths, power cuts, a wrong clock, a full disk, new versions.

    make hil                                             the emulated board
    pytest -m hil --lg-env board.yaml                    another one: docs/hil.md

Every job here has the same seed, so that all of them must end on the same bits, whatever happens on the way.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.hil.board.tools import NotHere
from tests.hil.conftest import BUDGETS as FOUND
from tests.hil.lab.board_under_test import HOME, BoardUnderTest
from tests.hil.lab.budgets import budgets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.bundle.folder import Bundle
    from tests.hil.lab.lab import Lab

# Budgets: the most that a figure may be. The emulated board's are for a machine with two busy cores. Those of real
# boards are what is demanded of them; none has been measured yet.
ENVIRONMENTS = ("qemu-arm64", "rpi5", "rpi4", "jetson-orin-nano")
BUDGETS = {
    "power to birth, s": (300.0, 45.0, 60.0, 75.0),
    "service dead to birth, s": (180.0, 20.0, 25.0, 20.0),
    "peak RSS of the service, MB": (250.0, 250.0, 250.0, 300.0),
    "step of the tiny bundle, s": (10.0, 0.05, 0.1, 0.05),
    "temperature after training, °C": (None, 80.0, 80.0, 80.0),
}

pytestmark = [pytest.mark.hil, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def joined(
    lg_environment: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_export: Callable[..., Bundle],
) -> Iterator[Lab]:
    """The board of the environment, which has joined a server of its own; once for all tests here."""
    from tests.hil.lab.fleet_of_boards import FleetOfBoards
    from tests.hil.lab.lab import Lab

    environment = Path(lg_environment).stem
    env, wires = request.getfixturevalue("env"), request.getfixturevalue("strategy")
    budgets = budgets_of(BUDGETS, ENVIRONMENTS, environment)
    request.config.stash[FOUND][environment] = budgets
    listen = "127.0.0.1" if wires.is_emulated else "0.0.0.0"  # noqa: S104  # the board is another machine
    fleet = FleetOfBoards(tmp_path_factory.mktemp("lab") / "fleet", tiny_export("bert", splits=(1,)), listen)
    try:
        host = wires.reach(fleet.ports)
        board = BoardUnderTest(wires, f"lab-{environment}")
        lab = Lab(board, fleet, budgets, int(env.config.get_option("covey_steps", "12")), host)
        lab.set_up()
        yield lab
    except NotHere as error:
        pytest.skip(str(error))
    finally:
        fleet.end()
        fleet.stop()


@pytest.fixture
def lab(joined: Lab) -> Lab:
    """The board, online, with nothing to do."""
    joined.settle()
    return joined


def test_boot_to_birth(lab: Lab) -> None:
    began = lab.cut_power_and_boot()
    lab.budgets.measure("power to birth, s", lab.wait_birth(began) - began)
    assert lab.fleet.device(lab.name)["machine"] == "aarch64"
    lab.left_clean()


def test_a_round_is_trained_and_the_board_has_the_servers_adapter(lab: Lab) -> None:
    sha256 = lab.reference()
    shown = lab.fleet.covey("job", "show", "undisturbed")
    assert [(row["state"], row["reports"]) for row in shown["round_list"]] == [("aggregated", 1)] * 2
    assert lab.fleet.device(lab.name)["adapter_sha256"] == sha256
    (device,) = shown["device_list"]
    lab.budgets.measure("step of the tiny bundle, s", device["mean_seconds"] / lab.steps)
    lab.budgets.measure("peak RSS of the service, MB", lab.board.peak_rss_mb())
    lab.left_clean()


def test_a_service_that_is_killed_in_mid_round_comes_back_and_ends_on_the_same_bits(lab: Lab) -> None:
    reference = lab.reference()
    before = lab.lines_in_log("this device ended while it trained")
    lab.order("killed")
    lab.board.wait_training("killed")
    pid, began = lab.board.main_pid(), time.time()
    lab.board.run(f"kill -9 {pid}")
    another = f"test $(systemctl show -p MainPID --value covey-edge) != {pid}"
    lab.board.wait_until(f"{another} && systemctl is-active covey-edge", "new process")
    lab.wait_logged("this device ended while it trained", before)
    lab.budgets.measure("service dead to birth, s", lab.wait_birth(began) - began)
    assert lab.finish("killed") == reference
    lab.left_clean()


def test_a_power_cut_in_mid_round_ends_on_the_same_bits(lab: Lab) -> None:
    reference = lab.reference()
    lab.order("cut")
    lab.board.wait_training("cut")
    lab.cut_power_and_boot()
    lab.wait_logged("1 times the whole machine started again", 0)
    assert lab.finish("cut") == reference
    lab.left_clean()


def test_a_broker_that_is_lost_in_mid_round_is_found_again(lab: Lab) -> None:
    reference = lab.reference()
    before = lab.lines_in_log("connection to the broker lost")
    lab.order("lost")
    lab.board.wait_training("lost")
    lab.fleet.end(signal.SIGKILL)  # the server with its broker
    lab.wait_logged("connection to the broker lost", before)
    assert lab.board.is_active()
    lab.fleet.begin()
    assert lab.finish("lost") == reference
    lab.left_clean()


def test_a_clock_that_is_wrong_at_boot_is_said_and_once_it_is_right_the_board_trains(lab: Lab) -> None:
    reference = lab.reference()
    lab.cut_power_and_boot("2020-01-01T00:00:00")
    assert int(lab.board.run("date +%s")) < time.time() - 30 * 86_400
    lab.wait_logged("is not valid yet by this machine.s clock", 0)
    lab.order("clock")
    lab.board.set_clock()
    lab.fleet.wait_state(lab.name, "online")
    assert lab.finish("clock") == reference
    # lab.left_clean is not said: the clock is put in order before the next test


def test_a_profile_is_measured_and_published(lab: Lab) -> None:
    reference = lab.reference()
    lab.order("profiled")  # what is profiled is the bundle that the device has
    assert lab.finish("profiled") == reference
    said = lab.board.covey_edge(
        *("profile", "--config", f"{HOME}/edge.toml", "--shapes", "1x16", "--seconds", "0.1"), timeout_s=900.0
    )
    lab.board.service("restart")  # it is sent, signed, with the next birth
    profile = lab.wait(lambda: lab.fleet.lines("profile", "show", lab.name), "profile at the server")[-1]["profile"]
    assert profile == said["profile"]
    assert profile["facts"]["machine"] == "aarch64"
    if lab.board.wires.is_emulated:
        assert profile["facts"]["board"] == "qemu-arm64"
    lab.fleet.wait_state(lab.name, "online")
    lab.left_clean()


def test_a_bundle_is_rolled_out_and_the_board_goes_back_by_itself(lab: Lab, tiny_export: Callable[..., Bundle]) -> None:
    bundles = [tiny_export("bert", splits=(1,)), tiny_export("bert", splits=(2,))]
    for number, bundle in enumerate(bundles, start=1):
        lab.fleet.covey("rollout", "start", "bundle", str(bundle.path), "--groups", "100%")
        lab.wait(lambda n=number: _rollout(lab, n)["state"] != "running", f"end of rollout {number}")
        assert _rollout(lab, number)["state"] == "finished", _rollout(lab, number)
    config = ("--config", f"{HOME}/edge.toml")
    assert lab.board.covey_edge("version", "show", *config)["current"]["bundle_sha256"] == bundles[1].sha256
    assert lab.board.covey_edge("version", "rollback", *config)["current"]["bundle_sha256"] == bundles[0].sha256
    lab.cut_power_and_boot()  # what it went back to outlives a power cut
    assert lab.board.covey_edge("version", "show", *config)["current"]["bundle_sha256"] == bundles[0].sha256
    lab.fleet.wait_state(lab.name, "online")


def test_a_full_disk_is_said_and_loses_nothing(lab: Lab) -> None:
    reference = lab.reference()
    fill = f"{HOME}/fill"
    lab.board.try_run(f"fallocate -l $(df --output=avail -B1 {HOME} | tail -n 1) {fill}")
    lab.board.try_run(f"runuser -u covey -- sh -c 'cat /dev/zero >> {HOME}/fill2' 2>/dev/null", 300.0)
    assert lab.board.try_run(f"runuser -u covey -- sh -c 'head -c 65536 /dev/zero > {HOME}/fill3'")[0] != 0
    lab.order("full")
    lab.wait_logged("disk full while writing", 0)
    lab.board.run(f"rm -f {fill} {HOME}/fill2 {HOME}/fill3")
    assert lab.finish("full") == reference
    assert lab.board.is_active()


@pytest.mark.hw
def test_heat_and_throttling_are_read_as_the_board_has_them(lab: Lab) -> None:
    if lab.board.wires.is_emulated:
        pytest.skip("hw: an emulated board has no sensors; --lg-env tests/hil/environments/rpi5.yaml")
    lab.reference()
    reading = json.loads(
        lab.board.run(
            "/var/lib/covey/update/current/bin/python3 "
            "-c 'import msgspec; from edge_runtime.device.board import Board; "
            "print(msgspec.json.encode(Board().read()).decode())'"
        )
    )
    zones = lab.board.run("cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null || true").split()
    hottest = max(int(value) / 1e3 for value in zones if 0 < int(value) < 200_000)
    assert abs(reading["temperature_c"] - hottest) < 5
    lab.budgets.measure("temperature after training, °C", reading["temperature_c"])
    code, said = lab.board.try_run("vcgencmd get_throttled")
    if code == 0:
        word = int(said.strip().partition("=")[2], 16)
        assert reading["throttled"] == bool(word & 0b1110)
        assert reading["throttled_since_boot"] == bool((word >> 16) & 0b1110)
        assert not word & 0b1, "under-voltage: a better supply, or what is measured here is the supply"
    lab.left_clean()


def _rollout(lab: Lab, number: int) -> dict[str, Any]:
    return lab.fleet.covey("rollout", "show", str(number))
