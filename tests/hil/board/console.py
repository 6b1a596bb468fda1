"""The board's serial line: what it prints, and commands that are run on it."""

from __future__ import annotations

import re
import socket
import time
import uuid
from typing import TYPE_CHECKING

from tests.hil.board.debian import PROMPT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


class Console:
    """A serial line on a UNIX socket. All that comes is appended to a log.

    Args:
        path: the socket.
        log: the file.
    """

    def __init__(self, path: Path, log: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._log = log
        self._pending = ""

    def wait_for(self, pattern: str, timeout_s: float, alive: Callable[[], bool] = lambda: True) -> str:
        """Read until a pattern has come; return what came up to its end.

        Raises:
            TimeoutError: it did not come; the text has the last lines.
            ConnectionError: the machine is off.
        """
        deadline = time.monotonic() + timeout_s
        while (found := re.search(pattern, self._pending)) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no {pattern!r} on the serial line in {timeout_s:.0f} s: …{self._pending[-2000:]}")
            self._socket.settimeout(min(left, 5.0))
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                data = b"" if not alive() else None
            if data is None:
                continue
            if not data:
                raise ConnectionError(f"the board is off: …{self._pending[-2000:]}")
            with self._log.open("ab") as file:
                file.write(data)
            self._pending += _CONTROL.sub("", data.decode(errors="replace"))
        text, self._pending = self._pending[: found.end()], self._pending[found.end() :]
        return text

    def send(self, text: str) -> None:
        """Type something."""
        self._socket.sendall(text.encode())

    def wait_login(self, timeout_s: float = 600.0) -> None:
        """Wait until a shell of root waits for a command."""
        self.wait_for(re.escape(PROMPT), timeout_s)

    def run(self, command: str, timeout_s: float = 300.0) -> tuple[int, str]:
        """Run a command line in the shell of root; return its exit code and what it printed."""
        mark = uuid.uuid4().hex[:12]
        # The mark is in two halves in what is typed, so that the echo is not taken for the end.
        self.send(f"echo {mark[:6]}''{mark[6:]}; {{ {command}\n}}; echo {mark[:6]}''{mark[6:]} $?\n")
        self.wait_for(f"{mark}\n", timeout_s)
        text = self.wait_for(rf"{mark} (\d+)\n", timeout_s)
        self.wait_for(re.escape(PROMPT), timeout_s)
        output, _, code = text.rstrip("\n").rpartition(f"{mark} ")
        return int(code), _without_echo(output)

    def close(self) -> None:
        """Let the line go; the board goes on."""
        self._socket.close()


def _without_echo(text: str) -> str:
    """Return a command's output without the shell's continuation prompts before it."""
    return re.sub(r"^(> )+.*\n", "", text)
