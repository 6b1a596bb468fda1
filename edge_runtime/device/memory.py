"""Memory of this machine and process: what is free, what is resident, and the peak. Everything reads it here.

What a bundle needs for training is estimated in ``bundle/memory_need.py``.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from pathlib import Path

from edge_runtime.device.sysfs import read_kilobytes, read_text

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_STATUS = Path("/proc/self/status")


def free_bytes(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int | None:
    """Return the memory that this process can still get without swapping; None: not known.

    Args:
        meminfo: the machine's memory, as the kernel reports it.
        cgroup: the process's control group (version 2), which a container limits; its page cache counts as free.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):  # not Linux, or not readable
        found.append(1024 * _numbers(meminfo)["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, KeyError):  # the group has no limit
        most, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        found.append(max(0, most - used + _numbers(cgroup / "memory.stat")["file"]))
    return min(found) if found else None


def _numbers(path: Path) -> dict[str, int]:
    """Return the number of each line by the word before it."""
    return {words[0]: int(words[1]) for line in path.read_text().splitlines() if len(words := line.split()) > 1}


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what many small tensors held.

    After a full-depth step of RoBERTa-base that was 200 MB. Does nothing where the C library has no ``malloc_trim``.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def resident_bytes() -> int | None:
    """Return the resident memory of this process now; None: not known."""
    return read_kilobytes(read_text(_STATUS), "VmRSS")


def peak_since_reset_bytes() -> int | None:
    """Return the largest resident memory of this process since reset_peak; None: not known."""
    return read_kilobytes(read_text(_STATUS), "VmHWM")


def reset_peak() -> None:
    """Let peak_since_reset_bytes begin anew. Does nothing where the kernel does not allow it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
