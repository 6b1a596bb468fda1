"""The benchmark of failovers, small: a standby speaks to a device after a kill, and the job's adapter is the same."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from fleets import has_mosquitto
from postgres import binaries

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.mosquitto,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not has_mosquitto(), reason="mosquitto is not installed: apt-get install mosquitto"),
    pytest.mark.skipif(binaries() is None, reason="PostgreSQL is not installed: apt-get install postgresql"),
]


def test_a_standby_is_timed_and_the_adapters_are_one(tiny_bundle: Bundle) -> None:
    sizes = ("--kills", "1", "--rounds", "30", "--devices", "4", "--repeats", "1")
    command = [sys.executable, "-m", "benchmarks.speed.failover", "--bundle", str(tiny_bundle.path), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=840)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["failover_kills"] >= 1
    assert (found["failover_adapters"], found["failover_rounds_wrong"]) == (1, 0)
    assert 0.0 < found["failover_s"]["median"] <= found["failover_s"]["worst"]
    assert found["postgres_over_sqlite_round"]["median"] > 0.0
