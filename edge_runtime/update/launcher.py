"""The launcher: starts the current version, watches a new one, and goes back to the one before if it does not work.

It is the process of the service. It imports the standard library and a few small files, which launcher_file.py packs
into one, and runs on the system's Python: an update never changes it. It may be killed at any point: what it does
next is decided by its state on disk, which it writes before it acts.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError, StorageError, UpdateError
from edge_runtime.files.aside import set_aside
from edge_runtime.update import rules
from edge_runtime.update.device_process import Device, ask
from edge_runtime.update.requests import SETUP, read_request, remove_request
from edge_runtime.update.rules import NETWORK_EXIT_CODE, Limits, exit_words, judge
from edge_runtime.update.slots import (
    INSTALL_LOCK,
    LAUNCHER_LOCK,
    LockedError,
    installed,
    link_slot,
    linked_slot,
    locked,
)
from edge_runtime.update.state import STATE_FILE, StateDamagedError, read_state, write_state

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.update.state import State

_LOG = logging.getLogger("edge_runtime.launcher")
_LOOK_S = 0.5
_GRACE_S = 60.0
"""Seconds that a device has to end by itself before it is killed: a step on a slow board, and its goodbye."""
_ASK_S = 180.0
_LOCK_S = 2.0
"""Seconds that another launcher has to end, and whoever looks whether one runs has to look."""
_PAUSES_S = (5.0, 10.0, 20.0, 40.0, 60.0)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Launcher:
    """Runs the current version of a folder of slots.

    Args:
        root: the folder.
        arguments: of ``covey-edge``: ``run --config edge.toml``.
        reach: arguments of the command that says whether a version can reach the broker.
        limits: how long a version on trial has.
    """

    def __init__(self, root: Path, arguments: Sequence[str], reach: Sequence[str], limits: Limits) -> None:
        self._root, self._arguments, self._reach, self._limits = root, arguments, reach, limits
        self._device: Device | None = None
        self._told = False  # whether somebody wants the service to end
        self._error = ""  # the last one that the device has told
        self._pauses = 0
        self._saved: State | None = None  # what the disk has; None: it is not known
        self._state = self._first()

    def run(self) -> int:
        """Run until the device ends by itself or this process is told to end; return the device's exit code."""
        for number in _SIGNALS:
            signal.signal(number, self._end)
        while True:
            slot = self._next_slot()
            if self._told:
                return 0
            began = time.monotonic()
            self._device = Device(self._root, slot, self._arguments, time.monotonic)
            if self._told:  # the signal may have come before there was a device
                self._device.tell(signal.SIGTERM)
            on_trial = self._state.trial is not None and slot == self._state.current
            reason, code = self._watch(self._device, on_trial=on_trial)
            self._device.close()
            self._error, self._device = self._device.error, None
            done = self._after(reason, code, time.monotonic() - began, on_trial=on_trial)
            if done is not None:
                return done

    # -- what runs next -------------------------------------------------------------------------------------------

    def _first(self) -> State:
        """Return the state of the disk, mended where it is damaged or names a version that is gone."""
        try:
            state = self._saved = read_state(self._root)
        except StateDamagedError as error:
            set_aside(self._root / STATE_FILE, error.what)
            state = None
        slots = installed(self._root)
        if state is None:
            state = rules.first_state(slots, linked_slot(self._root))
        if state is None or not slots:
            raise UpdateError(f"{self._root} holds no version of Covey that could run", SETUP)
        return rules.repaired(state, slots, time.time())

    def _next_slot(self) -> str:
        """Take a request, count an attempt, write both down, and return the slot to start.

        Where nothing can be written, attempts cannot be counted: the version before is started, and the trial waits.
        """
        before = self._state
        slots, now = installed(self._root), time.time()
        try:
            with locked(self._root, INSTALL_LOCK, "", ""):
                request = read_request(self._root)
                if request is not None:
                    self._state = rules.take_request(self._state, request, slots, now)
                self._state = rules.begin_attempt(rules.repaired(self._state, slots, now), slots, now)
                self._save()
                if request is not None:
                    remove_request(self._root)
                link_slot(self._root, self._state.current)
        except LockedError:
            if before.trial is not None:  # an installation is refused then: this one begins just now, and ends soon
                self._state = rules.begin_attempt(before, slots, now)
                self._write()
        except StorageError as error:
            _LOG.error("the launcher's state cannot be written: %s", error)
            self._state = before
            if before.trial is not None and before.trial.back in slots:
                return before.trial.back
        self._say(before)
        return self._state.current

    def _say(self, before: State) -> None:
        """Log what has changed."""
        outcome = self._state.outcome
        if outcome is not None and outcome != before.outcome:
            level = logging.WARNING if outcome.reason else logging.INFO
            words = f": {outcome.reason}" if outcome.reason else ""
            _LOG.log(level, "%s to Covey %s: %s%s", outcome.kind, outcome.to_version, outcome.result, words)

    def _save(self) -> None:
        """Write the state, where the disk has another one: a device without rows ends every few seconds, for days."""
        if self._state != self._saved:
            self._saved = None
            write_state(self._root, self._state)
            self._saved = self._state

    def _write(self) -> None:
        try:
            self._save()
            link_slot(self._root, self._state.current)
        except StorageError as error:
            _LOG.error("the launcher's state cannot be written: %s", error)

    # -- while it runs --------------------------------------------------------------------------------------------

    def _watch(self, device: Device, *, on_trial: bool) -> tuple[str, int]:
        """Wait until the device ends or has to; return why, in a word, and its exit code.

        The words: ``ended`` by itself, ``told``, ``asked`` (a request waits), or a verdict of rules.judge.
        """
        while (code := device.look(_LOOK_S)) is None:
            if self._told:
                continue  # it has its signal; how long it may take is the service manager's business
            if self._is_asked():
                return "asked", device.end(_GRACE_S)
            if not on_trial:
                if self._state.deaths and time.monotonic() - device.signs.started_at > self._limits.soon_s:
                    self._state = rules.survived(self._state)
                    self._write()
                continue
            verdict = judge(device.signs, self._limits, time.monotonic())
            if verdict == "accept":
                on_trial, before = False, self._state
                self._state = rules.accept(self._state, installed(self._root), time.time())
                self._write()
                self._say(before)
                self._pauses = 0
            elif verdict != "wait":
                return verdict, device.end(_GRACE_S)
        return ("told" if self._told else "ended"), code

    def _is_asked(self) -> bool:
        """Whether a request waits that changes what runs; one that does not is taken at once."""
        request = read_request(self._root)
        if request is None or request.id == self._state.request:
            return False
        try:
            with locked(self._root, INSTALL_LOCK, "", ""):
                before = self._state
                after = rules.take_request(before, request, installed(self._root), time.time())
                if after.current != before.current:
                    write_state(self._root, before)  # where that fails, stopping the device would lead to nothing
                    return True
                self._state = after
                self._save()
                remove_request(self._root)
                self._say(before)
        except StorageError as error:  # an installation is at work, or the disk is full: it is looked at again
            _LOG.debug("a request waits: %s", error)
        return False

    def _end(self, _number: int, _frame: object) -> None:
        self._told = True
        if self._device is not None:
            self._device.tell(signal.SIGTERM)

    # -- after it has ended ---------------------------------------------------------------------------------------

    def _after(self, reason: str, code: int, lived_s: float, *, on_trial: bool) -> int | None:
        """Enter how the device has ended; return this process's exit code, None where another start follows."""
        if reason == "asked":
            return None
        before, slots, now = self._state, installed(self._root), time.time()
        waits = False
        if reason == "told":
            self._state = rules.spare_attempt(before) if on_trial else before
        elif before.trial is None or not on_trial:
            self._state = rules.after_end(before, slots, code, lived_s, self._limits, now)
        elif self._nobody_connects(reason, code, before.trial.back):
            self._state, waits = rules.spare_attempt(before), True
            _LOG.warning("the version before does not reach the broker either: the trial waits for the network")
        else:
            self._state = rules.fail_attempt(before, slots, self._words(reason, code), now)
            _LOG.warning("the new version failed: %s", self._words(reason, code))
        if self._state != before:
            self._write()
            self._say(before)
        if waits:
            self._pause()
        if self._told and code == -signal.SIGTERM:
            return 0
        if self._told or ((before.trial is None or not on_trial) and self._state.current == before.current):
            return code if code >= 0 else 128 - code
        return None

    def _words(self, reason: str, code: int) -> str:
        said = f": {self._error}" if self._error else ""
        if reason == "unreachable" or (reason == "ended" and code == NETWORK_EXIT_CODE):
            return f"it does not reach the broker, and the version before does{said}"
        if reason == "late":
            return f"it did not begin to serve in {self._limits.healthy_s:g} s{said}"
        if reason == "silent":
            return f"it began to serve, and gave no sign of life any more{said}"
        return f"it ended by itself with {exit_words(code)}{said}"

    def _nobody_connects(self, reason: str, code: int, back: str) -> bool:
        """Whether a trial failed for want of a network: the version before is asked whether it reaches the broker."""
        if reason != "unreachable" and code != NETWORK_EXIT_CODE:
            return False
        return ask(self._root, back, self._reach, _ASK_S, lambda: self._told) != 0

    def _pause(self) -> None:
        """Wait for the network, a little longer each time."""
        until = time.monotonic() + _PAUSES_S[min(self._pauses, len(_PAUSES_S) - 1)]
        self._pauses += 1
        while time.monotonic() < until and not self._told and not self._is_asked():
            time.sleep(_LOOK_S)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the launcher; returns the device's exit code, or that of an error (errors.py lists them)."""
    parser = argparse.ArgumentParser(
        prog="covey-launcher",
        description="Start the current version of Covey on this device; watch a new one, and go back if it fails.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="edge.toml")
    parser.add_argument(
        "--root", type=Path, default=Path(sys.argv[0]).absolute().parent, help="the folder of the slots"
    )
    limits = Limits()
    parser.add_argument("--health-timeout", type=float, default=limits.healthy_s, metavar="SECONDS", help=_HEALTHY)
    parser.add_argument("--probation", type=float, default=limits.trial_s, metavar="SECONDS", help=_TRIAL)
    parser.add_argument("rest", nargs="*", metavar="-- FLAGS", help="further flags of covey-edge run")
    args = parser.parse_args(argv)
    line = "%(asctime)s %(levelname)s launcher: %(message)s"
    logging.basicConfig(level=logging.INFO, format=line, datefmt="%H:%M:%S")
    root, config = args.root.absolute(), str(args.config.absolute())
    busy = "another launcher runs from this folder"
    try:
        with locked(root, LAUNCHER_LOCK, busy, "end it first: systemctl status, or ps, shows it", patience_s=_LOCK_S):
            limits = Limits(args.health_timeout, args.probation)
            reach = ["update", "reach", "--config", config]
            return Launcher(root, ["run", "--config", config, *args.rest], reach, limits).run()
    except CoveyError as error:
        sys.stderr.write(f"covey-launcher: {error}\n")
        return error.exit_code


_ROOT = "the folder of the slots (default: that of this file)"
_HEALTHY = "how long a new version may take until it serves (default: %(default)g)"
_TRIAL = "how long a new version then has to stay up (default: %(default)g)"


if __name__ == "__main__":
    raise SystemExit(main())
