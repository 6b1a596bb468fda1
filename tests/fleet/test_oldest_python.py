"""A device process on another Python trains with this environment's server: the oldest that a device may have.

``.ci/versions.py edge oldest --python …`` makes the environment and names its Python in COVEY_DEVICE_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fleets import Fleet, free_port, write_job

from edge_runtime.bundle.folder import Bundle
from server.storage.device_queries import devices_of
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

DEVICE_PYTHON = os.environ.get("COVEY_DEVICE_PYTHON")
pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        DEVICE_PYTHON is None, reason="COVEY_DEVICE_PYTHON names no environment; run: .ci/versions.py edge oldest"
    ),
]
_VERSIONS = """
import json, platform
from importlib import metadata
print(json.dumps([platform.python_version(), {name: metadata.version(name) for name in ("onnxruntime", "tokenizers")}]))
"""


def test_an_old_and_a_new_device_train_together(tmp_path: Path, tiny_bundle: Bundle) -> None:
    assert DEVICE_PYTHON is not None
    asked = subprocess.run([DEVICE_PYTHON, "-c", _VERSIONS], check=True, capture_output=True, text=True).stdout
    python_version, libraries = json.loads(asked)
    fleet = Fleet(tmp_path, tiny_bundle, free_port(), external=False)
    fleet.device_pythons["old"] = DEVICE_PYTHON
    try:
        server = fleet.serve(write_job(tmp_path, rounds=2, min_devices=2, steps=2))
        devices = [fleet.device("old", 0), fleet.device("new", 1)]
        result = server.result()
        hashes = {device.result()["adapter_sha256"] for device in devices}
        assert hashes == {result["adapter_sha256"]}
    finally:
        fleet.stop()
    ledger = Ledger(fleet.state_dir / LEDGER_FILE)
    try:
        known = {found.device: found for found in devices_of(ledger)}
    finally:
        ledger.close()
    assert known["old"].birth["python_version"] == python_version
    assert libraries.items() <= known["old"].birth["runtimes"].items()
    assert {name: found.reports for name, found in known.items()} == {"old": 2, "new": 2}
    assert known["new"].birth["python_version"] == ".".join(map(str, sys.version_info[:3]))
