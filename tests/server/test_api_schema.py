"""What a running server answers has every field that the ledger gives: commands read either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from server.api.schema import DeviceStatus, JobStatus
from server.simulation.run import SimulateOptions, simulate
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.registry import device_list
from server.views.summary import job_list

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    folder: Path = tmp_path_factory.mktemp("schema")
    simulate(SimulateOptions(devices=4, rounds=1, cohort=3, drop_out=0.0), state_dir=folder)
    return Ledger(folder / LEDGER_FILE, read_only=True)


def test_devices_have_the_same_fields_either_way(ledger: Ledger) -> None:
    for device in device_list(ledger):
        assert msgspec.to_builtins(msgspec.convert(device, DeviceStatus)) == device


def test_jobs_have_the_same_fields_either_way(ledger: Ledger) -> None:
    for job in job_list(ledger):
        assert msgspec.to_builtins(msgspec.convert(job, JobStatus)) == job
