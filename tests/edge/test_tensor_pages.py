"""Pages of mapped tensors leave the process's memory on request, and are there again when somebody reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_runtime.files.tensor_file import encode_tensors, forget_pages, map_tensors


def resident_bytes(path: Path) -> int:
    """Return the bytes of a file that are in this process's memory, from its mappings."""
    found, is_ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_ours = words[-1] == str(path)
        elif is_ours and words[0] == "Rss:":
            found += int(words[1]) * 1024
    return found


def test_forgotten_pages_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    written = {name: np.full(300_000, value, np.float32) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    path.write_bytes(encode_tensors(written, {}))
    tensors = map_tensors(path)
    assert sum(float(tensor.sum()) for tensor in tensors.values()) == 1_800_000
    whole = resident_bytes(path)
    assert whole >= 3_600_000
    forget_pages([tensors["b"]])
    assert 0 < resident_bytes(path) <= whole - 1_190_000
    assert np.array_equal(tensors["b"], written["b"])
    assert np.array_equal(tensors["a"], written["a"])
