"""Memory: what a level of a bundle needs for training, and what there is."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

"""Stored numbers a token and layer, in hidden sizes; measured on RoBERTa-base: 19 (docs/hybrid.md)."""
"""So many tokens of a row add one hidden size a token and layer: the attention matrix, heads of 64."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return the memory that this process can still have: of the machine, and of its control group (version 2)."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):  # not Linux, or not readable: not known
        found.append(1024 * _numbers(meminfo)["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, KeyError):  # the group has no limit
        most, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(max(0, most - used + _numbers(cgroup / "memory.stat")["file"]))  # the page cache can go
    return min(found) if found else None


def _numbers(path: Path) -> dict[str, int]:
    """Return the first number of each line, by the word before it."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}


def give_back() -> None:
    """Give memory that was freed back to the system: glibc keeps what many small tensors held.

    After a full-depth step of RoBERTa-base that was 200 MB. Does nothing where the C library cannot do it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
