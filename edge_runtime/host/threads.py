"""How many threads may run at once: what affinity and control groups leave of the processors.

Libraries that start threads of their own accord count the machine's processors. They are told the number instead,
through their environment variables, before they are loaded.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.host.cgroups import cpu_quota

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, MutableMapping

    from edge_runtime.host.sysfs import Sysfs

BLAS_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""Read once by OpenMP and by the libraries of NumPy's matrix products, when they are loaded."""
TOKENIZERS_VARIABLE = "RAYON_NUM_THREADS"
"""Read by the tokenizers when they first encode several rows at once."""


@dataclass(frozen=True)
class ThreadCount:
    """How many threads may run at once, and why.

    Attributes:
        count: at least 1.
        cores: processors that are online and in the process's affinity mask.
        quota: processors that the tightest control group allows, 1.5 for CPUQuota=150%; None: no limit.
        why: the limit that decides, as half a sentence.
    """

    count: int
    cores: int
    quota: float | None
    why: str


def _affinity() -> Collection[int] | None:
    """Return the processors that this process may run on; None: the system does not say."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def usable_threads(
    files: Sysfs | None = None,
    affinity: Callable[[], Collection[int] | None] = _affinity,
    machine_cores: Callable[[], int | None] = os.cpu_count,
) -> ThreadCount:
    """Return how many threads may run at once: one a processor that this process may use, a begun one included.

    Slow cores of a big.LITTLE processor count like fast ones: which cluster is faster for a bundle is measured by
    ``covey-edge profile --threads``, not guessed from clock rates.

    Args:
        files: the machine's files; None: this machine's.
        affinity: returns the processors of the affinity mask.
        machine_cores: returns the number of processors of the machine.
    """
    allowed, machine = affinity(), max(1, machine_cores() or 1)
    cores = machine if not allowed else len(allowed)
    quota = cpu_quota(files)
    count = cores if quota is None else max(1, min(cores, math.ceil(quota - 1e-9)))
    if quota is not None and quota < cores:
        why = f"cgroup quota {100 * quota:.0f}%"
    elif cores < machine:
        why = f"affinity to {cores} of {machine} cores"
    else:
        why = f"{cores} {'core' if cores == 1 else 'cores'}"
    return ThreadCount(count, cores, quota, why)


def threads_or_usable(threads: int) -> int:
    """Return a configured number of threads, or for 0 as many as may run at once."""
    return threads or usable_threads().count


def limit_libraries(environment: MutableMapping[str, str], blas: int, tokenizers: int) -> None:
    """Tell libraries that are not loaded yet how many threads they may start. What the owner has set stays.

    Args:
        environment: of the process, ``os.environ``.
        blas: threads of NumPy's matrix products.
        tokenizers: threads that encode rows.
    """
    for name in BLAS_VARIABLES:
        environment.setdefault(name, str(blas))
    environment.setdefault(TOKENIZERS_VARIABLE, str(tokenizers))
