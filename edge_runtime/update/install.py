"""Installs a wheel of Covey into the slot that does not run: an environment of its own, checked before it counts.

What the wheel needs is taken over from the slot that runs (dependencies.py); pip then finds what is missing in a folder
of wheels or an index, or says that it is missing. The new version checks itself on this device's configuration, state
and bundle (``covey-edge update check``) before its slot is marked as whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import CoveyError, StorageError, UpdateError, storage_error, system_error
from edge_runtime.files.writable import check_writable
from edge_runtime.update.dependencies import INSTALLER, can_link, packages_for, requested, site_packages, take_over
from edge_runtime.update.device_process import clean_environment, ends_with_its_parent
from edge_runtime.update.requests import known_state, settled_state
from edge_runtime.update.slots import (
    INSTALL_LOCK,
    PATIENCE_S,
    Installed,
    clear_slot,
    locked,
    mark_whole,
    other,
    slot_path,
    slot_python,
)
from edge_runtime.update.wheel_file import PROJECT, read_wheel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.update.dependencies import Package
    from edge_runtime.update.wheel_file import Wheel

_LOG = logging.getLogger(__name__)
_SPARE_BYTES = 64 << 20
_ENVIRONMENT_BYTES = 1 << 20
_PIP_S = 3600.0
_CHECK_S = 2400.0
_LAST_LINES = 6
_WAKE_S = 60.0


@dataclass(frozen=True)
class Supply:
    """Where packages come from that the slot that runs does not have, or has in a version that does not fit.

    Attributes:
        wheelhouse: a folder of wheels; None: there is none.
        index_url: a package index; None: the network is not asked.
    """

    wheelhouse: Path | None = None
    index_url: str | None = None


NO_SUPPLY = Supply()


def install_wheel(
    path: Path,
    sha256: str | None,
    root: Path,
    *,
    config: Path | None = None,
    supply: Supply = NO_SUPPLY,
) -> Installed:
    """Install a wheel into the slot that does not run, and check it there. The version that runs is not touched.

    It takes seconds to minutes of processor and disk: call it in a process of its own (``covey-edge update install``,
    or install_in_process). Whoever wants the new version to run calls request_switch afterwards.

    Args:
        path: the wheel.
        sha256: its SHA-256, in hex; None: not checked. Who takes a wheel from the network states it, signed.
        root: the folder of the slots; see update_root.
        config: ``edge.toml``, with which the new version checks itself; None: it is only loaded.
        supply: where missing packages come from.

    Returns:
        What is in the slot now.

    Raises:
        UpdateError: no slots, a version on trial, a wheel that is damaged or not Covey's, packages that are missing, or
            a new version that does not work here. The slot is empty afterwards: the version before is gone from it.
        StorageError: too little space, a disk that cannot be written, or another installation at work.
    """
    wheel, root = read_wheel(path, sha256), root.absolute()
    settled_state(root)
    check_writable(root, "--root of covey-edge update")
    busy = "a version is already being installed, or the launcher is switching"
    with locked(root, INSTALL_LOCK, busy, "wait until that has ended: covey-edge update status", PATIENCE_S):
        state = settled_state(root)
        packages = _packages(wheel, root, state.current)
        return fill_slot(
            wheel, root, other(state.current), slot_python(root, state.current), packages, config=config, supply=supply
        )


def _packages(wheel: Wheel, root: Path, slot: str) -> list[Package]:
    """Return what is taken over from a slot: what the wheel needs, and what the owner has put there by name."""
    folder = site_packages(slot_path(root, slot))
    paths = [] if folder is None else [str(folder)]
    own = [name for name in requested(paths) if name != PROJECT]
    return packages_for([*wheel.requirements, *own], paths)


def fill_slot(
    wheel: Wheel,
    root: Path,
    slot: str,
    python: Path,
    packages: Sequence[Package],
    *,
    config: Path | None,
    supply: Supply,
) -> Installed:
    """Make a slot's virtual environment, install into it, check it, and mark it as whole; see install_wheel.

    Args:
        wheel: the wheel.
        root: the folder of the slots; the caller holds INSTALL_LOCK.
        slot: the slot; what is in it is removed first.
        python: the interpreter whose kind the environment gets.
        packages: what is taken over.
        config: see install_wheel.
        supply: see install_wheel.

    Raises:
        UpdateError, StorageError: see install_wheel.
    """
    _check_space(wheel, root, slot, packages)
    clear_slot(root, slot)
    try:
        _LOG.info("installing Covey %s into %s", wheel.version, slot_path(root, slot).name)
        _make_environment(python, slot_path(root, slot))
        _take_over(slot_path(root, slot), packages)
        _pip(wheel, root, slot, supply)
        _check(wheel, root, slot, config)
        found = Installed(slot, wheel.version, wheel.sha256)
        mark_whole(root, found)
    except BaseException:
        _clear_quietly(root, slot)
        raise
    _LOG.info("Covey %s is installed and checked", wheel.version)
    return found


def _take_over(environment: Path, packages: Sequence[Package]) -> None:
    target = site_packages(environment)
    if target is None:
        raise UpdateError("the new virtual environment has no site-packages", _VENV_HINT)
    there = {package.name for package in packages if take_over(package, target)}
    if INSTALLER not in there:
        raise UpdateError("the version that runs has no pip beside it", "install it there: python -m ensurepip")


def _clear_quietly(root: Path, slot: str) -> None:
    try:
        clear_slot(root, slot)
    except StorageError as error:  # the first error is the one to say; a slot without a marker is no version
        _LOG.warning("what was installed so far stays: %s", error.what)


def _check_space(wheel: Wheel, root: Path, slot: str, packages: Sequence[Package]) -> None:
    """Compare the disk with what is written; a package takes nothing where its files can be linked."""
    copied = sum(each.size_bytes for each in packages if not can_link(each, root))
    needed = wheel.unpacked_bytes + _ENVIRONMENT_BYTES + copied
    freed = 0 if not slot_path(root, slot).is_dir() else _own_bytes(slot_path(root, slot))
    try:
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise storage_error(error, root) from error
    if free + freed < needed + _SPARE_BYTES:
        raise StorageError(
            f"Covey {wheel.version} needs {(needed + _SPARE_BYTES) / 1e6:.0f} MB, {root} has {free / 1e6:.0f} MB free",
            "free some space: journals of the system and its package cache (apt clean) are the usual places",
        )


def _own_bytes(path: Path) -> int:
    """Return what removing a folder frees: files that have no other link."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                found = os.lstat(Path(folder, name))
            except OSError:
                continue
            total += found.st_size if found.st_nlink == 1 else 0
    return total


_VENV_HINT = "install Python's venv module (Debian: apt install python3-venv), and try again"


def _make_environment(python: Path, path: Path) -> None:
    done = _run([str(python), "-I", "-m", "venv", "--without-pip", str(path)], _PIP_S, "making the environment")
    if done.returncode:
        raise UpdateError(f"cannot make a virtual environment: {_last_words(done)}", _VENV_HINT)


def _pip(wheel: Wheel, root: Path, slot: str, supply: Supply) -> None:
    """Let the new environment's own pip install the wheel; it takes what is there where its version fits."""
    command = [
        str(slot_python(root, slot)),
        "-I",
        "-m",
        "pip",
        "--isolated",
        "--no-input",
        "--disable-pip-version-check",
    ]
    install = [
        *command,
        "install",
        "--no-warn-script-location",
        "--only-binary",
        ":all:",
    ]
    if supply.index_url is None:
        install += ["--no-index"]
    else:  # what was fetched before a connection broke is there the next time
        install += ["--index-url", supply.index_url, "--cache-dir", str(root / "pip-cache")]
    if supply.wheelhouse is not None:
        install += ["--find-links", str(supply.wheelhouse.absolute())]
    done = _run([*install, str(wheel.path)], _PIP_S, "installing")
    if done.returncode:
        raise UpdateError(f"Covey {wheel.version} cannot be installed: {_pip_error(done)}", _supply_hint(supply))


def _supply_hint(supply: Supply) -> str:
    if supply.index_url is None and supply.wheelhouse is None:
        return (
            "nothing beyond what is installed was asked: give --wheelhouse DIR with the missing wheels, or --index-url"
        )
    if supply.index_url is None:
        return f"put the missing wheels into {supply.wheelhouse}: pip download covey on a machine of the same kind"
    return "check the index and the network; what was fetched is kept for the next attempt"


def _check(wheel: Wheel, root: Path, slot: str, config: Path | None) -> None:
    """Let the new version check itself: on this device's configuration, state and bundle, without changing them."""
    command = [str(slot_python(root, slot)), "-I", "-m", "edge_runtime.cli", "update", "check", "--format", "json"]
    if config is not None:
        command += ["--config", str(config.absolute())]
    done = _run(command, _CHECK_S, "checking the new version")
    answer = _answer(done.stdout)
    if done.returncode:
        cause = f"{answer['error']}" if "error" in answer else f"{_last_words(done)} (exit code {done.returncode})"
        hint = str(answer.get("hint") or "the version that runs stays; report this to whoever made the wheel")
        raise UpdateError(f"Covey {wheel.version} does not work on this device: {cause}", hint)
    if answer.get("covey_version") != wheel.version:
        raise UpdateError(
            f"{wheel.path.name} says that it is {wheel.version}, and what it installs is {answer.get('covey_version')}",
            "build the wheel again from a clean folder: its build/ is old",
        )


def _answer(text: str) -> dict[str, object]:
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def _run(
    command: list[str], limit_s: float, doing: str, *, ends_with_us: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command of a slot, in the folder of its interpreter: a working directory may hold another Covey.

    Where this process is killed, the command ends with it, unless ``ends_with_us`` says otherwise: the next
    installation would empty the slot into which it still writes.
    """
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=clean_environment(),
            cwd=Path(command[0]).parent,
            preexec_fn=ends_with_its_parent() if ends_with_us else None,  # noqa: PLW1509 an installer has one thread
        ) as popen:
            try:
                out, err = _heard(popen, limit_s, doing)
            finally:
                popen.kill()  # one that has ended hears nothing
            return subprocess.CompletedProcess(command, popen.returncode, out, err)
    except FileNotFoundError as error:
        raise UpdateError(f"{command[0]} is not there", "set up the slots again: covey-edge update setup") from error
    except OSError as error:
        raise system_error(error) from error


def _heard(popen: subprocess.Popen[str], limit_s: float, doing: str) -> tuple[str, str]:
    """Return what a process has said by its end. This thread wakes now and then: the watchdog looks for that."""
    until = time.monotonic() + limit_s
    while (left_s := until - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return popen.communicate(timeout=min(left_s, _WAKE_S))
    raise UpdateError(f"{doing} did not end in {limit_s:.0f} s", "look for what keeps the disk busy")


def _pip_error(done: subprocess.CompletedProcess[str]) -> str:
    """Return pip's own lines of errors, on one line."""
    lines = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return "; ".join(lines[:_LAST_LINES]) or _last_words(done)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit code {done.returncode}, without a word"


def install_in_process(path: Path, sha256: str, root: Path, config: Path, supply: Supply = NO_SUPPLY) -> Installed:
    """Install a wheel as install_wheel does, in a process of its own at the lowest priority, by the version that runs.

    Raises:
        UpdateError, StorageError: as install_wheel; or the process was ended.
    """
    python = slot_python(root.absolute(), known_state(root).current)
    command = [str(python), "-I", "-m", "edge_runtime.cli", "update", "install", str(path.absolute())]
    command += [
        "--sha256",
        sha256,
        "--root",
        str(root.absolute()),
        "--config",
        str(config.absolute()),
        "--no-switch",
        "--format",
        "json",
    ]
    if supply.wheelhouse is not None:
        command += ["--wheelhouse", str(supply.wheelhouse)]
    if supply.index_url is not None:
        command += ["--index-url", supply.index_url]
    niced = ["nice", "-n", "19", *command] if shutil.which("nice") else command
    # A device has several threads; the installer holds a lock until its own end.
    done = _run(niced, _PIP_S + _CHECK_S, "installing", ends_with_us=False)
    answer = _answer(done.stdout)
    if done.returncode == 0 and "slot" in answer:
        return Installed(str(answer["slot"]), str(answer["version"]), str(answer["sha256"]))
    what, hint = str(answer.get("error") or _last_words(done)), str(answer.get("hint") or "covey-edge update status")
    kinds: dict[object, type[CoveyError]] = {StorageError.exit_code: StorageError}
    raise kinds.get(answer.get("exit_code"), UpdateError)(what, hint)
