"""Joins a fleet in processes that are killed at a line of the code that joins; prints how each has ended.

Run as a program: ``python join_kills.py TOKENS FOLDER STEP``; TOKENS is a file with a token in each line. The first
joins undisturbed and counts the lines; the others are killed before every STEP-th of them. FOLDER/N has what the
process with the N-th token left. Prints the number of lines, then the line and how the process ended for each kill.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from joining import joined

if TYPE_CHECKING:
    from types import FrameType

_TRACED = ("edge_runtime/trust/join.py", "edge_runtime/trust/identity.py", "edge_runtime/trust/edge_file.py")
_ALSO = ("edge_runtime/files/atomic.py", "edge_runtime/trust/exchange.py", "edge_runtime/trust/keys.py")


def run(token: str, config: Path, killed_at: int | None) -> int:
    """Join in a process of its own, killed before a line; return how the process ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status, count = 1, 0

    def line(_frame: FrameType, event: str, _value: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, _event: str, _value: object) -> Any:
        return line if frame.f_code.co_filename.endswith(_TRACED + _ALSO) else None

    try:
        sys.settrace(call)
        joined(token, config)
        sys.settrace(None)
        config.with_name("count").write_text(str(count))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Kill one process for each token but the first."""
    tokens, folder, step = Path(sys.argv[1]).read_text().split(), Path(sys.argv[2]), int(sys.argv[3])
    whole = folder / "0" / "edge.toml"
    if status := run(tokens[0], whole, None):
        sys.exit(f"the join that nobody killed ended with {status}")
    total = int(whole.with_name("count").read_text())
    sys.stdout.write(f"{total}\n")
    for number, token in enumerate(tokens[1:], 1):
        killed_at = 1 + (number - 1) * step
        if killed_at > total:
            break
        sys.stdout.write(f"{killed_at} {run(token, folder / str(number) / 'edge.toml', killed_at)}\n")


if __name__ == "__main__":
    main()
