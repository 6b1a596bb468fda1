"""A server that boards join: processes, state and ports of its own, on this machine."""

from __future__ import annotations

import shutil
import signal
from typing import TYPE_CHECKING, Any

from fleets import free_port, wait_for
from trusted import TrustedFleet

from tests.hil.lab.board_under_test import PATIENT

if TYPE_CHECKING:
    from pathlib import Path

    from fleets import Process

    from edge_runtime.bundle.folder import Bundle


class FleetOfBoards(TrustedFleet):
    """A fleet with an authority, whose server is started and stopped by tests.

    Args:
        root: a folder for everything.
        bundle: what is trained.
        listen: the address on which it listens.
    """

    def __init__(self, root: Path, bundle: Bundle, listen: str) -> None:
        root.mkdir(parents=True, exist_ok=True)
        super().__init__(root, bundle)
        # The ports stay over every restart: an emulated board reaches these and no others.
        self.said = {"join_port": free_port(), "http_port": free_port()}
        self._listen = listen
        self.server: Process | None = None

    @property
    def ports(self) -> list[int]:
        """The ports that a board must reach: of the broker, of joining, of files."""
        return [self.port, int(self.said["join_port"]), int(self.said["http_port"])]

    def begin(self) -> None:
        """Start the server, and wait until it serves."""
        self.server = self.open("--listen", self._listen)

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server, and its broker with it; SIGKILL: at once."""
        if self.server is not None and self.server.popen.poll() is None:
            self.server.popen.send_signal(how)
            self.server.popen.wait(120)
        self.server = None

    def name_for_boards(self, host: str) -> None:
        """Let the server's certificate have a name; the server must be stopped."""
        self.covey("fleet", "host", host)

    def token(self, device: str, host: str) -> str:
        """Return a one-time token with which a device joins."""
        file = self.root / f"{device}.token"
        file.unlink(missing_ok=True)
        self.covey("fleet", "token", device, "--file", str(file), "--url", f"https://{host}:{self.said['join_port']}")
        return file.read_text().split()[1]

    def keep(self) -> None:
        """Keep the state of the server, which is stopped."""
        shutil.rmtree(self._kept, ignore_errors=True)
        shutil.copytree(self.state_dir, self._kept)

    def go_back(self) -> None:
        """Stop the server, and go back to the kept state."""
        self.end()
        shutil.rmtree(self.state_dir)
        shutil.copytree(self._kept, self.state_dir)

    @property
    def _kept(self) -> Path:
        return self.root / "kept-server"

    def device(self, name: str) -> dict[str, Any]:  # type: ignore[override]
        """Return what the server knows of a device; empty: nothing."""
        found = self.covey("device", "list")["devices"]
        return next((one for one in found if one["device"] == name), {})

    def wait_state(self, name: str, state: str, timeout_s: float = 300.0) -> None:
        """Wait until the server knows that a device is online, offline or lost."""
        wait_for(lambda: self.device(name).get("state") == state, f"{name} that is {state}", timeout_s)

    def order(self, name: str, steps: int, rounds: int = 2, **fields: Any) -> None:
        """Submit a job; those with the same steps and rounds end on the same bits."""
        self.submit(name, rounds=rounds, steps=steps, **PATIENT | fields)

    def finish(self, name: str, timeout_s: float = 600.0) -> dict[str, Any]:
        """Wait until a job has ended well; return what ``covey job show`` says."""

        def ended() -> dict[str, Any] | None:
            shown = self.covey("job", "show", name)
            assert shown["state"] not in ("failed", "stopped"), shown["reason"]
            return shown if shown["state"] == "finished" else None

        return dict(wait_for(ended, f"end of job {name}", timeout_s))
