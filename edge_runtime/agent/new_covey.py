"""Takes a version of Covey that the fleet rolls out, through the launcher that has started this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError, UpdateError
from edge_runtime.update.install import install_in_process
from edge_runtime.update.requests import known_state, read_request, request_rollback, request_switch
from edge_runtime.update.slots import installed

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.update.state import State

_SOON = "it is asked again when the launcher has decided"


class NotYetError(NetworkError):
    """The launcher has not decided yet: neither that the version works nor that it does not."""


class LauncherSlots:
    """Replaces the version of Covey that runs; see ReplacesCovey.

    A switch ends this process. What became of it is known to the process after it, to which the server's request comes
    again: the new version says that it runs, or the old one why it is back.

    Args:
        root: the folder of the launcher's slots.
        config: ``edge.toml``, with which a new version checks itself.
    """

    def __init__(self, root: Path, config: Path) -> None:
        self._root, self._config = root, config

    def switch(self, wheel: Path, sha256: str) -> None:
        """Install a wheel and have it started; return once it runs and is accepted.

        Raises:
            NotYetError: it is on trial, or will be in a moment; ask again.
            UpdateError: it cannot be installed, does not work here, or was tried and did not come up.
            StorageError: the disk is full, or the state cannot be read.
        """
        state = self._settled()
        if self._runs(state, sha256):
            return
        last = state.outcome
        if last is not None and last.sha256 == sha256 and last.kind == "update" and last.result != "accepted":
            raise UpdateError(
                f"Covey {last.to_version} was tried here and is {last.result}: {last.reason or 'no reason is known'}",
                "mend it, and roll out another wheel; or try it by hand: covey-edge update install WHEEL",
            )
        found = install_in_process(wheel, sha256, self._root, self._config)
        request_switch(self._root, found)
        raise NotYetError(f"Covey {found.version} is installed, and the launcher starts it", _SOON)

    def back(self, sha256: str) -> None:
        """Go back from a wheel to the version before, if it is in use.

        Raises:
            NotYetError: the launcher is at it; ask again.
            UpdateError: there is no version to go back to.
            StorageError: the state cannot be read, or the request not be written.
        """
        state = self._settled()
        if self._runs(state, sha256):
            request_rollback(self._root)
            raise NotYetError("the launcher goes back to the version before", _SOON)

    def _settled(self) -> State:
        state = known_state(self._root)
        request = read_request(self._root)
        if state.trial is not None or (request is not None and request.id != state.request):
            raise NotYetError("a version of Covey is on trial on this device", _SOON)
        return state

    def _runs(self, state: State, sha256: str) -> bool:
        here = installed(self._root).get(state.current)
        return here is not None and here.sha256 == sha256
