"""Changes slots in processes that are killed at a line of the code that does so; prints how each has ended.

Run as a program: ``python update_kills.py FOLDER STEP WHAT``. FOLDER/N is a folder of slots for the N-th process, which
is killed before its N * STEP-th line; the process of FOLDER/0 is not killed and counts them. WHAT is ``switch``: the
request there is taken; ``clear``: slot b is emptied; or ``mark``: slot b is marked as whole.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.update.launcher import Launcher
from edge_runtime.update.rules import Limits
from edge_runtime.update.slots import Installed, clear_slot, mark_whole

if TYPE_CHECKING:
    from types import FrameType

_TRACED = ("launcher.py", "rules.py", "slots.py", "state.py", "requests.py", "atomic.py", "aside.py", "shutil.py")


def switch(root: Path) -> None:
    """Take the request."""
    Launcher(root, [], [], Limits())._next_slot()


def clear(root: Path) -> None:
    """Empty slot b."""
    clear_slot(root, "b")


def mark(root: Path) -> None:
    """Mark slot b as whole."""
    mark_whole(root, Installed("b", "0.2", "0" * 64))


WHAT = {"switch": switch, "clear": clear, "mark": mark}


def run(root: Path, what: str, killed_at: int | None) -> int:
    """Change a folder in a process of its own, killed before a line; return how the process ended."""
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
        return line if path.endswith(_TRACED) else None

    try:
        sys.settrace(call)
        WHAT[what](root)
        sys.settrace(None)
        (root / "count").write_text(str(count))
        status = 0
    finally:
        os._exit(status)


def main() -> None:
    """Kill one process for each folder but the first."""
    folder, step, what = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if status := run(folder / "0", what, None):
        sys.exit(f"the process that nobody killed ended with {status}")
    total = int((folder / "0" / "count").read_text())
    sys.stdout.write(f"{total}\n")
    for number in range(1, len(list(folder.iterdir()))):
        if number * step > total:
            break
        sys.stdout.write(f"{number * step} {run(folder / str(number), what, number * step)}\n")


if __name__ == "__main__":
    main()
