"""Makes an unpacked Linux_for_Tegra into one board's: a user, a hostname, keys, and what a card gets of Covey."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError, StorageError, storage_error
from edge_runtime.trust.token import decode_token
from server.flash import payload
from server.flash.check import CardReport, training_words, unpacking_words
from server.flash.environment import archive_problems
from server.flash.l4t import DEFAULT_TARGET, ROOTFS, USER_TOOL, WIZARD, look_at_l4t, place_in, users_of
from server.flash.overlay import check_room, damaged_files, read_note, remove_overlay, write_overlay, write_whole
from server.flash.places import FOLDER, HOME

if TYPE_CHECKING:
    from server.flash.first_boot import Settings
    from server.flash.l4t import L4t
    from server.flash.payload import Payload

_EMULATOR = Path("/usr/bin/qemu-aarch64-static")
_IDENTITY = (f"{HOME}/edge.toml", f"{HOME}/identity", f"{FOLDER}/set-up")
_OPTIONAL = (payload.TOKEN, payload.EDGE_SETTINGS)


@dataclass(frozen=True)
class Login:
    """Who can log in to the board.

    Attributes:
        user: the name.
        password: for sudo and the console, where the user is made now; None: the user is there already, or no user is
            made.
        asks_at_boot: whether NVIDIA's questions at the first boot are left to make the user.
    """

    user: str
    password: str | None = None
    asks_at_boot: bool = False


def check_ready(l4t: L4t, login: Login, *, accepts_license: bool, uid: int, owner: int = 0) -> None:
    """Check, before the first byte is written, that the root file system can be made into a board's.

    Args:
        l4t: the unpacked Linux_for_Tegra.
        login: who will log in.
        accepts_license: whether the operator has accepted NVIDIA's license, which its script asks about.
        uid: of this process.
        owner: uid of the root file system's own files.

    Raises:
        ConfigError: this process is not root, NVIDIA's script is missing or would ask, or a device is in it already.
    """
    if uid != owner:
        raise ConfigError(
            f"{l4t.rootfs} belongs to root, and so must what is added to it; nothing has been written",
            "sudo covey flash jetson …",
        )
    if l4t.owner != owner:
        raise ConfigError(
            f"{l4t.rootfs} was unpacked without root: its files belong to user {l4t.owner}, and no board boots",
            f"remove {l4t.rootfs}, and unpack it again with: sudo tar xpf …",
        )
    found = [path for path in _IDENTITY if place_in(l4t.rootfs, path).exists()]
    if found:
        raise ConfigError(
            f"{l4t.rootfs} has run already: {found[0]} is that of a device",
            "take a root file system that no board has booted from: two boards with one identity are put in quarantine",
        )
    if login.password is None:
        return
    tool = l4t.folder / USER_TOOL
    if not l4t.has_user_tool:
        raise ConfigError(
            f"{tool} is missing, with which NVIDIA's packages make the first user",
            "unpack the driver package again; or --no-user: the board then asks at its first boot, at its own screen, "
            "and Covey starts after that",
        )
    if not accepts_license:
        raise ConfigError(
            f"{tool} makes the user only after NVIDIA's license is accepted",
            f"read it, and give --accept-license; or make the user yourself: sudo {tool} -u {login.user}",
        )
    needs_emulator = b"qemu-aarch64-static" in tool.read_bytes() and platform.machine() != "aarch64"
    if needs_emulator and not _EMULATOR.exists():
        raise ConfigError(f"{tool} needs {_EMULATOR}", "sudo apt install qemu-user-static")


def make_jetson(l4t: L4t, settings: Settings, login: Login, made: Payload, owner: int = 0) -> CardReport:
    """Make a root file system into a board's, and read it back; see check_ready.

    Args:
        l4t: the unpacked Linux_for_Tegra.
        settings: hostname and keys.
        login: who will log in.
        made: what it gets of Covey.
        owner: uid and gid of what is written.

    Raises:
        StorageError: something could not be written; Covey is not started on a board that is flashed from it then.
    """
    files = payload.root_files(l4t, settings, made)
    check_room(l4t.rootfs, payload.needed_bytes(files, 0))
    if login.password is not None:
        _make_user(l4t, login, login.password, settings.hostname)
    try:
        _set_hostname(l4t.rootfs, settings.hostname, owner)
        if not login.asks_at_boot:
            _leave_wizard_out(l4t.rootfs)
            _add_keys(l4t.rootfs, login.user, settings.ssh_keys)
    except OSError as error:
        raise storage_error(error, l4t.rootfs) from error
    remove_overlay(l4t.rootfs, (path for path in _OPTIONAL if path not in {file.path for file in files}))
    write_overlay(l4t.rootfs, files, owner)
    report = check_jetson(l4t.folder, owner)
    problems = [*report.problems, *([] if report.device == made.device else ["it is another device's"])]
    if problems:
        raise StorageError(f"the root file system is not as it should be: {'; '.join(problems)}", "try it again")
    return report


def check_jetson(folder: Path, owner: int = 0) -> CardReport:
    """Read back what was put into an unpacked Linux_for_Tegra: what the board will do, and what is wrong.

    Args:
        folder: the folder Linux_for_Tegra.
        owner: uid that the files must have.

    Raises:
        ConfigError: it is none.
        StorageError: it cannot be read.
    """
    l4t = look_at_l4t(folder)
    report = CardReport(l4t.system, l4t.python, l4t.format)
    note = read_note(l4t.rootfs)
    if note is None:
        report.problems.append(
            f"nothing of Covey is in it, or the work was interrupted: {payload.NOTE} is missing in {ROOTFS}"
        )
        return report
    report.device, report.hostname, report.covey_version = note["device"], note["hostname"], note["covey_version"]
    if l4t.waits_for_wizard:
        if l4t.users:
            report.problems.append(
                f"{DEFAULT_TARGET} is {WIZARD}, which keeps every service from starting (apply_binaries.sh sets it)"
            )
        report.steps.append(f"{WIZARD} asks for a user at the board's screen; Covey starts when that is done")
    elif not l4t.users:
        report.problems.append("nobody can log in: there is no user, and the board does not ask for one")
    else:
        report.steps.append(f"it boots without questions; {', '.join(sorted(l4t.users))} can log in")
    report.problems += damaged_files(l4t.rootfs, note, owner)
    if note["python"] != l4t.python:
        report.problems.append(f"its packages are for Python {note['python']}, and {l4t.system} has {l4t.python}")
    _check_services(l4t.rootfs, report)
    _check_environment(l4t, report)
    _check_token(l4t.rootfs, report)
    return report


def _make_user(l4t: L4t, login: Login, password: str, hostname: str) -> None:
    """Run NVIDIA's script; it takes the password as an argument, and has no other way."""
    tool = str((l4t.folder / USER_TOOL).absolute())
    command = ["/bin/bash", tool, "-u", login.user, "-p", password, "-n", hostname, "--accept-license"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, cwd=l4t.folder)
    except OSError as error:
        raise StorageError(f"{tool} cannot be run ({error})", "sudo apt install bash") from error
    if done.returncode or login.user not in users_of(l4t.rootfs):
        lines = [line for line in (done.stderr or done.stdout).decode(errors="replace").splitlines() if line.strip()]
        said = lines[-1].replace(password, "…") if lines else "it said nothing"
        raise StorageError(
            f"{tool} has made no user {login.user} (code {done.returncode}): {said}",
            f"run it yourself: sudo {tool} -u {login.user}; then covey flash jetson again",
        )


def _set_hostname(rootfs: Path, hostname: str, owner: int) -> None:
    write_whole(place_in(rootfs, "/etc/hostname"), f"{hostname}\n".encode(), 0o644, owner)
    hosts = place_in(rootfs, "/etc/hosts")
    lines = hosts.read_text(errors="replace").splitlines() if hosts.is_file() else ["127.0.0.1 localhost"]
    kept = [line for line in lines if line.split()[:1] != ["127.0.1.1"]]
    write_whole(hosts, "\n".join([*kept, f"127.0.1.1 {hostname}", ""]).encode(), 0o644, owner)


def _leave_wizard_out(rootfs: Path) -> None:
    """Remove the default target where it is NVIDIA's wizard: the system's own one is used then, as its script does."""
    target = place_in(rootfs, DEFAULT_TARGET)
    if target.is_symlink() and target.readlink().name == WIZARD:
        target.unlink()


def _add_keys(rootfs: Path, user: str, keys: tuple[str, ...]) -> None:
    if not keys:
        return
    uid, gid = users_of(rootfs)[user]
    home = place_in(rootfs, f"/home/{user}")
    for folder, mode in ((home, 0o750), (home / ".ssh", 0o700)):
        if folder.is_symlink():
            raise StorageError(f"{folder} is a link", "take NVIDIA's own sample root file system")
        if not folder.is_dir():
            folder.mkdir(mode=mode)
            os.chown(folder, uid, gid)
    path = home / ".ssh/authorized_keys"
    there = path.read_text().splitlines() if path.is_file() and not path.is_symlink() else []
    lines = [*there, *(key for key in keys if key not in there)]
    write_whole(path, "".join(f"{line}\n" for line in lines).encode(), 0o600, uid, gid)


def _check_services(rootfs: Path, report: CardReport) -> None:
    for name in payload.SERVICES:
        link = place_in(rootfs, f"{payload.WANTS}/{name}")
        if not link.is_symlink() or not place_in(rootfs, f"{payload.UNITS}/{name}").is_file():
            report.problems.append(f"{name} is not started at boot")
    setup = place_in(rootfs, payload.SETUP)
    if setup.is_file() and setup.stat().st_mode & 0o111 != 0o111:
        report.problems.append(f"{payload.SETUP} cannot be run")


def _check_environment(l4t: L4t, report: CardReport) -> None:
    path = place_in(l4t.rootfs, payload.ARCHIVE)
    if not path.is_file():
        return  # it is named as missing already
    problems = archive_problems(path.read_bytes(), l4t.python)
    report.problems += [f"{payload.ARCHIVE}: {problem}" for problem in problems]
    report.steps.append(unpacking_words(report))
    settings = place_in(l4t.rootfs, payload.EDGE_SETTINGS)
    if settings.is_file():
        report.steps.append(f"edge.toml gets: {'; '.join(settings.read_text().splitlines())}")


def _check_token(rootfs: Path, report: CardReport) -> None:
    path = place_in(rootfs, payload.TOKEN)
    if not path.is_file():
        report.steps.append("it joins no fleet: there is no token on it")
        return
    if path.stat().st_mode & 0o777 != 0o600:
        report.problems.append(f"{payload.TOKEN} can be read by others")
    try:
        token = decode_token(path.read_text(errors="replace").strip())
    except ConfigError as error:
        report.problems.append(f"its join token is damaged: {error.what}")
        return
    if token.device != report.device:
        report.problems.append(f"its join token is for {token.device}")
    report.server_url, report.token_expires_at_s = token.server_url, token.expires_at_s
    report.steps.append(f"it joins the fleet at {token.server_url} as {token.device}; its key is made on the board")
    report.steps.append(training_words())
