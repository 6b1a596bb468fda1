"""Takes a switch in processes that are killed at a line of the code that switches; prints how each has ended.

Run as a program: ``python update_kills.py FOLDER STEP``. FOLDER/N is a folder of slots with a request in it for the
N-th process, which is killed before its N * STEP-th line; the process of FOLDER/0 is not killed and counts them.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.update.launcher import Launcher
from edge_runtime.update.rules import Limits

if TYPE_CHECKING:
    from types import FrameType

_TRACED = ("launcher.py", "rules.py", "slots.py", "state.py", "requests.py", "atomic.py", "aside.py")


def run(root: Path, killed_at: int | None) -> int:
    """Take the request of a folder in a process of its own, killed before a line; return how the process ended."""
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
        path = frame.f_code.co_filename
        return line if path.endswith(_TRACED) and "edge_runtime" in path else None

    try:
        launcher = Launcher(root, [], [], Limits())
        sys.settrace(call)
        launcher._next_slot()
        sys.settrace(None)
        (root / "count").write_text(str(count))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Kill one process for each folder but the first."""
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    if status := run(folder / "0", None):
        sys.exit(f"the switch that nobody killed ended with {status}")
    total = int((folder / "0" / "count").read_text())
    sys.stdout.write(f"{total}\n")
    for number in range(1, len(list(folder.iterdir()))):
        if number * step > total:
            break
        sys.stdout.write(f"{number * step} {run(folder / str(number), number * step)}\n")


if __name__ == "__main__":
    main()
