"""The limit of open files: a session takes one, so a swarm raises its own limit as far as it may."""

from __future__ import annotations

import resource

from edge_runtime.errors import ConfigError

_OTHERS = 100
"""Open files of a process beside its sessions."""


def allow_sessions(sessions: int) -> None:
    """Let this process, and those that it starts, open as many files as one of them needs.

    Args:
        sessions: of the process that has most.

    Raises:
        ConfigError: the system does not allow it; says how it can be allowed.
    """
    wanted = sessions + _OTHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(
            f"a process with {sessions} sessions needs {wanted} open files, and its limit is {hard}",
            f"raise the limit (as root: ulimit -Hn {wanted}, or LimitNOFILE={wanted} in a systemd unit; sysctl "
            f"fs.nr_open is the highest possible one), take more --processes, or fewer --devices",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
