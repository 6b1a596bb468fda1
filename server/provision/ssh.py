"""Runs shell scripts on a board with the system's OpenSSH client: its configuration, keys and agent are the user's."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from edge_runtime.errors import ConfigError, NetworkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Said = Callable[[int, int], None]
    """Is told how many bytes of how many are sent."""

_DESTINATION = re.compile(r"([A-Za-z0-9_.][A-Za-z0-9_.@-]*@)?\[?[A-Za-z0-9_.:%][A-Za-z0-9_.:%-]*\]?")
_SSH_FAILED = 255
_CHUNK = 1 << 18
_BEGIN = "covey-input-begins"
_SKIP_TO_BEGIN = f'while IFS= read -r line && [ "$line" != {_BEGIN} ]; do :; done\n'
"""Before a script whose standard input may begin with a password that sudo has not asked for."""

_NO_SUDO = re.compile(r"sudo: |Sorry, |\S+ is not in the sudoers file")
"""How lines begin with which sudo refuses; what a script itself says may have the same words further on."""

_NO_ROOT = "let the user use sudo without a password, give --ask-sudo to be asked for it, or log in as root"


class RemoteError(NetworkError):
    """A script on the board failed.

    Args:
        code: its exit code.
        said: the last lines of its standard error.
    """

    def __init__(self, what: str, hint: str, code: int, said: str) -> None:
        super().__init__(what, hint)
        self.code = code
        self.said = said


@dataclass(frozen=True)
class SshOptions:
    """How the board is reached.

    Attributes:
        destination: ``USER@HOST``, or a name in the user's ssh configuration.
        flags: more words for ssh: port, key, configuration file, options.
        is_batch: whether ssh must ask nothing: neither for passwords nor about host keys.
    """

    destination: str
    flags: tuple[str, ...] = ()
    is_batch: bool = True


class Remote:
    """A board that is reached over SSH; one connection serves all scripts. Close it, or use it as a context manager.

    Args:
        options: how it is reached.
        password: of sudo; None: sudo needs none.

    Raises:
        ConfigError: the destination can be none, or there is no ssh here.
    """

    def __init__(self, options: SshOptions, password: str | None = None) -> None:
        if _DESTINATION.fullmatch(options.destination) is None:
            raise ConfigError(f"{options.destination!r} is no USER@HOST", "give a destination as ssh takes it")
        if password is not None and "\n" in password:
            raise ConfigError("the password for sudo has two lines", "type it again")
        found = shutil.which("ssh")
        if found is None:
            raise ConfigError("ssh is not installed", "sudo apt install openssh-client")
        self._folder = tempfile.TemporaryDirectory(prefix="covey-ssh-")
        self._options, self._password, self._ssh = options, password, found
        self.is_root = False

    def __enter__(self) -> Self:
        """Return the board."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the connection."""
        subprocess.run([*self._words(), "-O", "exit", *self._where()], capture_output=True, check=False)
        self._folder.cleanup()

    def run(self, script: str, *, needs_root: bool = False, given: Path | None = None, said: Said | None = None) -> str:
        """Run a script with the board's sh, and return what it printed.

        Args:
            script: the script.
            needs_root: whether it is run as root.
            given: a file that is its standard input; None: it is empty.
            said: is told how far the input is.

        Raises:
            NetworkError: the board cannot be reached, or its host key is not known or has changed.
            ConfigError: the user may not log in, or not become root.
            RemoteError: the script failed.
        """
        head = b""
        if not needs_root or self.is_root:
            command = ["sh", "-c", script]
        elif self._password is None:
            command = ["sudo", "-n", "sh", "-c", script]
        else:
            command = ["sudo", "-S", "-p", "", "sh", "-c", _SKIP_TO_BEGIN + script]
            head = f"{self._password}\n{_BEGIN}\n".encode()
        code, out, err = self._do([*self._words(), *self._where(), shlex.join(command)], head, given, said)
        if code == _SSH_FAILED:
            raise ssh_error(self._options.destination, err)
        if code:
            lines = [line for line in err.splitlines() if line.strip()]
            if needs_root and any(_NO_SUDO.match(line) for line in lines):
                raise ConfigError(f"{self._options.destination} may not become root: {lines[-1]}", _NO_ROOT)
            what = lines[-1] if lines else f"it ended with code {code} and said nothing"
            raise RemoteError(
                f"{self._options.destination}: {what}",
                "see what the board says; the same command goes on from there",
                code,
                "\n".join(lines[-20:]),
            )
        return out

    def _words(self) -> list[str]:
        flags = ["-T", "-o", "ControlMaster=auto", "-o", f"ControlPath={self._folder.name}/%C"]
        flags += ["-o", "ControlPersist=60", "-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15"]
        flags += ["-o", f"BatchMode={'yes' if self._options.is_batch else 'no'}"]
        return [self._ssh, *self._options.flags, *flags]

    def _where(self) -> Sequence[str]:
        return ("--", self._options.destination)

    def _do(self, command: list[str], head: bytes, given: Path | None, said: Said | None) -> tuple[int, str, str]:
        """Run ssh with an input; return its exit code and what it printed."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err)
            try:
                _feed(process, head, given, said)
                code = process.wait()
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            out.seek(0)
            err.seek(0)
            return code, out.read().decode(errors="replace"), err.read().decode(errors="replace")


def _feed(process: subprocess.Popen[bytes], head: bytes, given: Path | None, said: Said | None) -> None:
    """Write the input of a process; one that ends before it has read all says itself why."""
    assert process.stdin is not None  # noqa: S101 it was started with a pipe
    try:
        with process.stdin as pipe:
            pipe.write(head)
            if given is None:
                return
            total, done = given.stat().st_size, 0
            with given.open("rb") as file:
                while data := file.read(_CHUNK):
                    pipe.write(data)
                    done += len(data)
                    if said is not None:
                        said(done, total)
    except BrokenPipeError:
        return


def ssh_error(destination: str, text: str) -> NetworkError | ConfigError:
    """Return the error of an ssh that has ended with its own code, from what it said."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    last = lines[-1] if lines else "ssh said nothing"
    host = destination.rpartition("@")[2]
    if "IDENTIFICATION HAS CHANGED" in text:
        return NetworkError(
            f"{host} has another host key than before: it was set up anew, or another machine answers for it",
            f"compare its key on its own screen (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub); if it is right: "
            f"ssh-keygen -R {host}",
        )
    if "Host key verification failed" in text or "host key is known" in text:
        return NetworkError(
            f"the host key of {host} is not known here", f"log in once with ssh {destination}, and compare the key"
        )
    if "Permission denied" in text or "Too many authentication failures" in text:
        return ConfigError(f"{destination} cannot log in: {last}", f"put your key there: ssh-copy-id {destination}")
    if "resolve hostname" in text:
        return NetworkError(f"there is no host {host}: {last}", "check its name; or give its address")
    if any(word in text for word in ("refused", "timed out", "No route", "unreachable")):
        return NetworkError(
            f"{host} cannot be reached: {last}", "is it on, is SSH on there, and is the port right? (--port)"
        )
    return NetworkError(f"the connection to {destination} has ended: {last}", "the same command goes on from there")
