"""The link with which tests impair a network loses, delays, doubles and reorders packets as it says."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from impaired_link import (
    CLEAN,
    DEVICE_ADDRESS,
    DEVICES,
    NEW_DEVICE_ADDRESS,
    PARTITION,
    SERVER,
    SERVER_ADDRESS,
    ImpairedLink,
    Impairment,
    fate,
    impaired_link,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SENT = 200
ECHO = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
    echo.bind(("", 7))
    print("ready", flush=True)
    while True:
        data, peer = echo.recvfrom(100)
        echo.sendto(data + peer[0].encode(), peer)
"""
PING = f"""
import socket, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
    probe.connect(("{SERVER_ADDRESS}", 7))
    began = time.monotonic()
    for number in range({SENT}):
        probe.send(b"%03d" % number)
    probe.settimeout(1.0)
    try:
        while True:
            data = probe.recv(100).decode()
            print(round(time.monotonic() - began, 3), data)
    except TimeoutError:
        pass
"""


@pytest.fixture(scope="module")
def link() -> Iterator[ImpairedLink]:
    with impaired_link(7) as made:
        command = [*made.inside(SERVER), sys.executable, "-c", ECHO]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            yield made
            echo.kill()


def ping(link: ImpairedLink) -> list[tuple[float, int, str]]:
    """Return the answers in their order: seconds since the first was sent, number, and whom the server saw."""
    command = [*link.inside(DEVICES), sys.executable, "-c", PING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(float(after), int(words[:3]), words[3:]) for after, words in lines]


def test_a_clean_link_carries_everything(link: ImpairedLink) -> None:
    link.impair(CLEAN)
    assert [number for _, number, _ in ping(link)] == list(range(SENT))


def test_loss_is_of_both_directions(link: ImpairedLink) -> None:
    link.impair(Impairment(loss=0.3))
    assert 0.35 * SENT < len(ping(link)) < 0.63 * SENT  # 0.7 * 0.7 arrive


def test_duplicates_and_reordering(link: ImpairedLink) -> None:
    link.impair(CLEAN, to_server=Impairment(duplicates=0.2, reordered=0.2))
    numbers = [number for _, number, _ in ping(link)]
    assert set(numbers) == set(range(SENT))
    assert 1.08 * SENT < len(numbers) < 1.35 * SENT
    assert numbers != sorted(numbers)


def test_delay_is_of_each_direction(link: ImpairedLink) -> None:
    link.impair(Impairment(delay_s=0.25))
    answers = ping(link)
    assert [number for _, number, _ in answers] == list(range(SENT))
    assert answers[0][0] >= 0.5


def test_a_partition_may_be_of_one_direction(link: ImpairedLink) -> None:
    for to_server in (PARTITION, CLEAN):
        link.impair(PARTITION, to_server=to_server)
        before = link.counts["taken"]
        assert not ping(link)
        assert link.counts["taken"] - before == SENT * (2 if to_server is CLEAN else 1)


def test_devices_move_to_another_address(link: ImpairedLink) -> None:
    link.impair(CLEAN)
    assert {seen for _, _, seen in ping(link)} == {DEVICE_ADDRESS}
    link.move_devices()
    assert {seen for _, _, seen in ping(link)} == {NEW_DEVICE_ADDRESS}


def test_the_fate_of_a_packet_is_decided_by_seed_and_number() -> None:
    bad = Impairment(loss=0.3, delay_s=0.5, duplicates=0.1, reordered=0.1, held_s=0.2)
    first, second, other = ([fate(bad, rng) for _ in range(1000)] for rng in map(random.Random, (1, 1, 2)))
    assert first == second != other
    assert {tuple(one) for one in first} == {(), (0.5,), (0.7,), (0.5, 0.5), (0.7, 0.7)}
    rng = random.Random(1)
    assert [fate(bad, rng) if n >= 500 else fate(CLEAN, rng) for n in range(1000)][500:] == first[500:]
