"""One flipped bit in each file of a server: the job ends on the bits of an undisturbed one, or the file is named."""

from __future__ import annotations

import random
import shutil
from typing import TYPE_CHECKING

import pytest
from fleets import Fleet, free_port, write_job

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FAULT = 70
"""Exit code of a fault of Covey itself, which damage on disk must never be."""


def run_on(root: Path, bundle: Bundle) -> tuple[int, str, str | None]:
    """Go on with a job; return the server's exit code, what it said, and the adapter's hash where the job has ended."""
    fleet = Fleet(root, bundle, free_port(), external=False)
    try:
        server = fleet.serve(root / "job.toml")
        device = fleet.device("pi", 0)
        code = server.popen.wait(300)
        if code == 0:
            assert device.result()["adapter_sha256"] == server.events()[-1]["adapter_sha256"]
        hashes = server.events()[-1].get("adapter_sha256") if code == 0 else None
        return code, server.stderr.read_text(), hashes
    finally:
        fleet.stop()


def flip(path: Path, seed: int) -> None:
    """Flip one bit somewhere in a file."""
    data, chance = bytearray(path.read_bytes()), random.Random(f"{path.name} {seed}")
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_one_flipped_bit_in_each_file_of_a_server(tmp_path: Path, tiny_bundle: Bundle) -> None:
    root = tmp_path / "whole"
    root.mkdir()
    fleet = Fleet(root, tiny_bundle, free_port(), external=False)
    server = fleet.serve(write_job(root, rounds=5))
    device = fleet.device("pi", 0)
    server.wait_event("round_closed", 2)
    for process in (server, device):
        process.popen.kill()
        process.popen.wait()
    fleet.stop()
    (root / "server" / "api.sock").unlink(missing_ok=True)
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)
    code, said, expected = run_on(root, tiny_bundle)
    assert (code, bool(expected)) == (0, True), said
    files = sorted(path.relative_to(kept) for path in (kept / "server").rglob("*") if path.is_file())
    files = [path for path in files if (kept / path).stat().st_size and path.suffix != ".lock"]
    assert {path.name.partition(".")[0] for path in files} >= {"ledger"}
    assert any(path.parent.name == "blobs" for path in files)
    ends: dict[str, str] = {}
    for name in files:
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        flip(root / name, 1)
        code, said, found = run_on(root, tiny_bundle)
        if code == 0:
            assert found == expected, f"{name}: the job ended on other bits"
            ends[str(name)] = "the same bits"
        else:
            assert code != FAULT, said
            assert "what to do" in said, said
            assert name.name.partition("-")[0] in said or "ledger" in str(name), said
            ends[str(name)] = f"exit code {code}"
    assert "the same bits" in ends.values()
