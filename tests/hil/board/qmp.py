"""QEMU's monitor: snapshots, and switching the machine off."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Qmp:
    """A session with QEMU's monitor on a UNIX socket."""

    def __init__(self, path: Path, timeout_s: float = 120.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout_s)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        json.loads(self._lines.readline())
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        """Send a command and return its answer; RuntimeError: QEMU refuses it."""
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        for line in self._lines:
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"QEMU refuses {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise ConnectionError(f"QEMU ended while it was asked for {name}")

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor, as ``savevm NAME``; RuntimeError: it prints an error."""
        said = str(self.command("human-monitor-command", **{"command-line": line}))
        if said.strip().startswith("Error"):
            raise RuntimeError(f"QEMU: {line}: {said.strip()}")
        return said

    def close(self) -> None:
        """End the session; the machine goes on."""
        self._lines.close()
        self._socket.close()
