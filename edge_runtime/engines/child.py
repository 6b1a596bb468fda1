"""Runs a module in a child process, so that a compiled library that ends its process ends the child and nobody else.

The child says on its standard output, as lines of JSON, what it is about to do and at last its answer. Its standard
input stays open for as long as the parent lives: a child without a parent ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError, CoveyError, as_covey_error, system_error

if TYPE_CHECKING:
    from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_LAST_WORDS = 300
"""Characters of a child's last line that a message quotes."""
_TAIL_LINES = 20
_SIGNALS = {
    "SIGILL": (
        "illegal instruction: it was built for another processor, most likely a newer one",
        "install a wheel for this processor (an older version), or build it here",
    ),
    "SIGSEGV": (
        "it used memory that is not its own",
        "install it again, in the version that pip chooses for this system: pip install --force-reinstall",
    ),
    "SIGBUS": (
        "a file that it had mapped was cut, or memory is broken",
        "look into dmesg for the disk and the memory, and try again",
    ),
    "SIGFPE": ("a calculation that the processor refuses", "install another version of it"),
    "SIGABRT": ("it gave up by itself", "install another version of it; its last words are above"),
    "SIGKILL": (
        "killed: the system has ended it, most likely for lack of memory",
        "end other programs, or use a smaller model; dmesg says whether memory was the reason",
    ),
    "SIGTERM": ("somebody has ended it", "nothing: it is tried again"),
    "SIGINT": ("somebody has ended it", "nothing: it is tried again"),
    "SIGHUP": ("somebody has ended it", "nothing: it is tried again"),
}
_OTHER_SIGNAL = ("a signal that Covey knows nothing of", "install another version of it")


@dataclass(frozen=True)
class Answer:
    """What a child process has found.

    Attributes:
        values: what it found; empty where it failed.
        what: why it failed; empty where it did not.
        hint: what to do about that.
        exit_code: the exit code of that failure.
    """

    values: dict[str, Any]
    what: str = ""
    hint: str = ""
    exit_code: int = ConfigError.exit_code


@dataclass(frozen=True)
class Patience:
    """How long a parent waits for its child.

    Attributes:
        limit_s: seconds until it is ended; None: it is never ended.
        said_every_s: seconds between two lines in the log that say that it still runs.
    """

    limit_s: float | None
    said_every_s: float = 60.0


# -- the parent's side --------------------------------------------------------------------------------------------


def run_child(module: str, *arguments: str, doing: str, patience: Patience) -> Answer:
    """Run a module as a child process and return its answer; a child that dies is an answer too.

    Args:
        module: the module's name; it calls ``answer``.
        arguments: its arguments.
        doing: what the child does until it says more, as ``loading it``.
        patience: how long to wait.

    Raises:
        StorageError: the process cannot be started: no descriptors or no memory are left.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)}
    environment["PYTHONSAFEPATH"] = "1"  # else -m puts the working directory first, which may hold another Covey
    try:
        lifeline, held = os.pipe()
    except OSError as error:
        raise system_error(error) from error
    try:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=lifeline,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=environment,
        )
        with child:
            try:
                said, words, in_time = _wait(child, doing, patience)
            finally:
                child.kill()  # does nothing to one that has ended
    except OSError as error:
        raise system_error(error) from error
    finally:
        os.close(lifeline)
        os.close(held)
    lines = _json_lines(said)
    doing = next((line["doing"] for line in reversed(lines) if "doing" in line), doing)
    if not in_time:
        what = f"{doing} does not end: it was stopped after {patience.limit_s:g} s"
        return Answer({}, what, "start the machine again; if it repeats, install another version of it")
    return _answer_of(child.returncode, lines, words, doing)


def _wait(child: subprocess.Popen[str], doing: str, patience: Patience) -> tuple[str, str, bool]:
    """Return standard output, standard error, and whether the child ended within its time."""
    waited_s, left_s = 0.0, patience.said_every_s
    while True:
        if patience.limit_s is not None:
            left_s = min(patience.said_every_s, patience.limit_s - waited_s)
        try:
            return *child.communicate(timeout=left_s), True
        except subprocess.TimeoutExpired:
            waited_s += left_s
            if patience.limit_s is not None and waited_s >= patience.limit_s:
                child.kill()
                return *child.communicate(), False
            _LOG.info("%s has taken %.0f s so far; the log says when it ends", doing, waited_s)


def _json_lines(said: str) -> list[dict[str, Any]]:
    """Return the child's own lines: a library may have printed others."""
    found = []
    for line in said.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict) and ("doing" in value or "answer" in value):
                found.append(value)
    return found


def _answer_of(code: int, lines: list[dict[str, Any]], words: str, doing: str) -> Answer:
    answered = next((line["answer"] for line in lines if isinstance(line.get("answer"), dict)), None)
    if code == 0 and answered is not None:
        return Answer({}, **answered) if "what" in answered else Answer(answered)
    tail = words.strip().splitlines()[-_TAIL_LINES:]
    if tail:
        _LOG.warning("last words of a child process, while %s:\n%s", doing, "\n".join(tail))
    last = f": {tail[-1][:_LAST_WORDS]}" if tail else ""
    if code < 0:
        name = _signal_name(-code)
        meaning, hint = _SIGNALS.get(name, _OTHER_SIGNAL)
        return Answer({}, f"{doing} ends the process by {name} ({meaning}){last}", hint)
    failed = f"{doing} fails{last or f' with exit code {code}'}"
    return Answer({}, failed, "install it again: pip install --force-reinstall")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# -- the child's side ---------------------------------------------------------------------------------------------


def say_doing(doing: str) -> None:
    """Tell the parent what this child is about to do, as ``loading onnxruntime``: its death is told so."""
    print(json.dumps({"doing": doing}), flush=True)  # noqa: T201 the parent reads it


def answer(find: Callable[[], dict[str, Any]]) -> None:
    """Print what ``find`` returns, or ``what``, ``hint`` and ``exit_code`` of why it fails, for the parent to read.

    Any other exception ends the process with its traceback, of which the parent says the last line.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _be_first_to_go()
    try:
        values = find()
    except (CoveyError, MemoryError, OSError) as caught:
        error = as_covey_error(caught)
        values = {"what": error.what, "hint": error.hint, "exit_code": error.exit_code}
    except ImportError as caught:
        values = {"what": f"does not load: {caught}", "hint": f"pip install {caught.name or 'what is missing'}"}
    print(json.dumps({"answer": values}), flush=True)  # noqa: T201 the parent reads it


def _end_with_parent() -> None:
    while os.read(0, 1):  # nothing is ever sent: the end of the file is the parent's end
        pass
    os._exit(1)


def _be_first_to_go() -> None:
    """Let a system without memory end this process before its parent, and leave no dump of its memory on the disk."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
