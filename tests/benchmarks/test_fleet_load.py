"""Real sessions under load, small: nothing is lost between devices, mosquitto and server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from fleets import has_mosquitto

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
]


def run(bundle: Bundle, *flags: str) -> dict[str, Any]:
    """Run the benchmark with its own command line, and return the object of its last line."""
    command = [sys.executable, "-m", "benchmarks.fleet", "--bundle", str(bundle.path), "--timeout-s", "240", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_rounds_of_half_of_the_devices_lose_nothing(tiny_bundle: Bundle) -> None:
    found = run(tiny_bundle, "--quick")
    assert (found["devices"], found["devices_connected"]) == (40, 40)
    assert (found["rounds_closed"], found["rounds_abandoned"], found["offers_failed"]) == (5, 0, 0)
    assert found["offers"] == found["plans_received"] == found["reports_taken"] == 100
    assert found["lost"] == found["lost_connections"] == found["messages_refused_by_devices"] == 0
    assert found["final_adapter_proved"] == 40
    assert {"round_overhead_s", "server_rss_growth_mb", "messages_per_s", "bytes_up", "bytes_down"} <= set(found)


def test_the_order_of_messages_does_not_change_the_adapter(tiny_bundle: Bundle) -> None:
    """Reports arrive in another order in each run; the same reports make the same adapter."""
    flags = ("--devices", "12", "--cohort", "12", "--rounds", "4")
    first, second = run(tiny_bundle, *flags), run(tiny_bundle, *flags)
    assert first["lost"] == second["lost"] == 0
    assert first["final_adapter_sha256"] == second["final_adapter_sha256"]
