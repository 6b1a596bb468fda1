"""The memory of a process in MB (10⁶ bytes), as Linux reports it in /proc."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.device.memory import peak_rss_bytes


def own_memory_mb() -> dict[str, float]:
    """Return the memory of this process.

    Returns:
        ``peak_rss_mb``: its largest resident memory so far. ``anonymous_mb``: pages that the kernel cannot drop and
        read again. ``code_mb``: resident pages of files that hold no tensors, which are those of the interpreter and
        of its libraries.
    """
    file_mb, tensor_mb = status_mb("RssFile"), _tensor_file_mb()
    return {
        "peak_rss_mb": peak_rss_bytes() / 1e6,
        "anonymous_mb": status_mb("RssAnon"),
        "code_mb": file_mb - tensor_mb,
    }


def status_mb(field: str, process: int | str = "self") -> float:
    """Return one memory field of ``/proc/<process>/status``, for example ``VmRSS``."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) * 1024 / 1e6


def _tensor_file_mb() -> float:
    """Return the resident pages of mapped safetensors files."""
    tensors_mb, is_tensors = 0.0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # the first line of a mapping; its fields follow
            is_tensors = words[-1].endswith(".safetensors")
        elif is_tensors and words[0] == "Rss:":
            tensors_mb += int(words[1]) * 1024 / 1e6
    return tensors_mb
