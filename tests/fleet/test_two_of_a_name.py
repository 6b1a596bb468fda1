"""Two machines with one name, and two servers of one fleet, as processes: both are named, and none spins."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, has_mosquitto, mosquitto, wait_for, write_edge, write_job

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

MOST_TAKEOVERS = 8
"""Takeovers after which the name must have been found: two show it, the others leave time for messages."""


def test_two_devices_with_one_name_are_named_with_boot_ids_and_addresses(fleet: Fleet) -> None:
    """The job waits for two devices, so that it never begins: only the names matter."""
    server = fleet.serve(write_job(fleet.root, min_devices=2))
    twins = []
    for number in (1, 2):
        config = write_edge(fleet.root / f"twin-{number}", "pi", fleet.port, number, connect_timeout_s=80.0)
        twins.append(fleet._start("edge_runtime.cli", ["run", "--config", str(config)], f"twin-{number}"))
    event = server.wait_event("name_doubled")
    losses = [twin.stderr.read_text().count("connection to the broker lost") for twin in twins]
    assert sum(losses) <= MOST_TAKEOVERS
    assert event["device"] == "pi"
    ids = [re.search(r"\(127\.0\.0\.1, boot id ([0-9a-f]{16})\)", start) for start in event["starts"]]
    assert all(ids)
    assert len({found[1] for found in ids if found}) == 2
    assert "give one of them another name" in server.stderr.read_text()
    assert [event["event"] for event in server.events()].count("name_doubled") == 1
    assert all(twin.popen.poll() is None for twin in twins)


@pytest.mark.mosquitto
@pytest.mark.skipif(not has_mosquitto(), reason="install the Debian package mosquitto")
@pytest.mark.slow
def test_a_second_server_gives_way_and_the_first_goes_on(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with mosquitto(tmp_path / "mosquitto") as port:
        first, second = (Fleet(tmp_path / name, tiny_bundle, port, external=True) for name in ("first", "second"))
        try:
            running = first.serve(write_job(first.root, rounds=1))
            running.wait_event("waiting")
            late = second.serve(write_job(second.root, rounds=1))
            assert late.popen.wait(90) == 11
            assert "has two servers" in late.events()[-1]["error"]
            assert "gives way" in json.dumps(late.events()[-1])
            wait_for(lambda: "is the younger one" in running.stderr.read_text(), "the first server's line")
            device = first.device("pi", 1)
            assert running.result()["state"] == "finished"
            device.result()
            assert "connection to the broker lost" not in running.stderr.read_text()
        finally:
            first.stop()
            second.stop()
