"""Memory of this machine and process: what is free, what is resident, and the peak. Everything reads it here.

What a bundle needs for training is estimated in ``bundle/memory_need.py``.
"""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

from edge_runtime.host.cgroups import memory_free_bytes
from edge_runtime.host.sysfs import Sysfs, read_kilobytes, read_text

_STATUS = Path("/proc/self/status")


def free_bytes(files: Sysfs | None = None) -> int | None:
    """Return the memory that this process can still get without swapping; None: not known.

    It is what the machine has available, or what the tightest of the process's control groups still allows
    (systemd's MemoryMax, a container's limit), whichever is less.

    Args:
        files: the machine's files; None: this machine's.
    """
    files = files or Sysfs()
    found = (read_kilobytes(files.text("proc/meminfo"), "MemAvailable"), memory_free_bytes(files))
    return min((free for free in found if free is not None), default=None)


def peak_rss_bytes() -> int:
    """Return the largest resident memory of this process so far; since reset_peak, where that was called.

    The kernel's number for the resources of a process begins, in a process that was started by another one, at that
    one's memory: it counts only where there is no other.
    """
    own = peak_since_reset_bytes()
    if own is not None:
        return own
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
