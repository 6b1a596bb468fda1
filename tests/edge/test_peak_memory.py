"""The peak of a process's memory: its own, not that of the process that started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from edge_runtime.device.memory import peak_rss_bytes, peak_since_reset_bytes

SAYS = "from edge_runtime.device.memory import peak_rss_bytes; print(peak_rss_bytes())"
LARGE = 400_000_000


@pytest.mark.skipif(peak_since_reset_bytes() is None, reason="this system does not say what a process's own peak is")
def test_a_process_does_not_report_its_parents_memory() -> None:
    large = np.ones(LARGE, dtype=np.uint8)
    assert peak_rss_bytes() > large.nbytes
    done = subprocess.run([sys.executable, "-c", SAYS], check=True, capture_output=True, text=True, timeout=120)
    assert 1_000_000 < int(done.stdout) < LARGE
