"""Opens an old ledger in processes that are killed before their N-th SQL statement; prints what each has left.

Run as a program: ``python upgrade_kills.py OLD_LEDGER FOLDER POINTS``. Prints the number of statements of a whole
upgrade, then one line of JSON per kill: the statement, and how the process ended. FOLDER/STATEMENT has what it left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

from server.storage.ledger import Ledger


def opened(path: Path, killed_at: int | None) -> int:
    """Open a ledger for writing in a process of its own, killed before a statement; return how the process ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        count = _count_statements(killed_at)
        Ledger(path).close()
        path.with_name("count").write_text(str(count[0]))
        status = 0
    finally:
        os._exit(status)


def _count_statements(killed_at: int | None) -> list[int]:
    """Count the statements of every connection that is opened from now on; kill the process before one of them."""
    count = [0]
    connect = sqlite3.connect

    def trace(_statement: str) -> None:
        count[0] += 1
        if count[0] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*values: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*values, **named)
        connection.set_trace_callback(trace)
        return connection

    sqlite3.connect = sqlite3.dbapi2.connect = traced  # type: ignore[attr-defined,assignment]
    return count


def main() -> None:
    """Kill processes at points that are spread evenly over an upgrade."""
    old, folder, points = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    whole = folder / "whole" / old.name
    whole.parent.mkdir(parents=True)
    shutil.copy(old, whole)
    if status := opened(whole, None):
        sys.exit(f"the upgrade that nobody killed ended with {status}")
    total = int(whole.with_name("count").read_text())
    sys.stdout.write(f"{total}\n")
    for killed_at in sorted({1 + index * (total - 1) // (points - 1) for index in range(points)}):
        path = folder / str(killed_at) / old.name
        path.parent.mkdir()
        shutil.copy(old, path)
        sys.stdout.write(json.dumps({"statement": killed_at, "status": opened(path, killed_at)}) + "\n")


if __name__ == "__main__":
    main()
