"""A device that starts again hears the hello of a running server: the embedded broker sends it to new sessions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleets import Fleet, free_port, wait_for, write_job

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def test_a_device_that_was_killed_is_online_again_after_its_restart(tmp_path: Path, tiny_bundle: Bundle) -> None:
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    try:
        server = fleet.serve(write_job(fleet.root, min_devices=2))  # it waits for a second device for ever

        def states() -> list[str]:
            return [event["state"] for event in server.events() if event["event"] == "device"]

        for start in (1, 2):
            device = fleet.device("pi", 1)
            wait_for(lambda start=start: states().count("online") == start, "the device")
            device.popen.kill()
            wait_for(lambda start=start: states().count("lost") == start, "its end")
    finally:
        fleet.stop()
