"""Looks at a board, and carries out what a plan says, over SSH."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_runtime.errors import EnrolmentError, StorageError, storage_error
from server.flash.payload import SERVICES, needed_bytes
from server.provision.archive import make_environment_for, sent_files, write_archive
from server.provision.facts import PROBE, PROBE_AS_ROOT, read_facts
from server.provision.plan import check_board, check_room
from server.provision.scripts import PURGE, RECEIVE, REMOVE, START, STOP
from server.provision.ssh import RemoteError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from server.provision.archive import Recipe
    from server.provision.facts import Facts
    from server.provision.plan import Plan, Target
    from server.provision.ssh import Remote, Said

    Stage = Callable[[str], None]
    """Is told what is done next."""

_FAILED_SET_UP = 3


def look(remote: Remote) -> tuple[Facts, Target]:
    """Return what a board is and has; nothing is changed there.

    Raises:
        ConfigError: Covey does not run there, or the user may not become root.
        StorageError: its disk is too small.
        NetworkError: it cannot be reached.
    """
    public = remote.run(PROBE)
    facts = read_facts(public, time.time())
    remote.is_root = facts.words.get("uid") == "0"
    target = check_board(facts)
    return read_facts(public + remote.run(PROBE_AS_ROOT, needs_root=True), time.time()), target


def look_for_removal(remote: Remote) -> Facts:
    """Return what a board has, whatever it is.

    Raises:
        ConfigError: the user may not become root.
        NetworkError: it cannot be reached.
    """
    public = remote.run(PROBE)
    remote.is_root = read_facts(public, time.time()).words.get("uid") == "0"
    return read_facts(public + remote.run(PROBE_AS_ROOT, needs_root=True), time.time())


def install(
    remote: Remote,
    facts: Facts,
    plan: Plan,
    recipe: Recipe,
    token: Callable[[], str],
    work: Path,
    stage: Stage,
    said: Said,
) -> None:
    """Carry out a plan that puts Covey onto a board.

    Args:
        remote: the board.
        facts: what it is and has.
        plan: what is to be done.
        recipe: what its files are made of.
        token: makes its join token, once everything else is ready.
        work: a folder for what is made here.
        stage: is told what is done next.
        said: is told how much is sent.

    Raises:
        EnrolmentError: the board could not be set up, or not join; the error has what its journal says.
        CoveyError: packages cannot be made, the board has no room, or the connection broke off.
    """
    if any(plan.does(action) for action in ("environment", "files", "rows", "join")):
        stage("making what the board gets")
        environment = make_environment_for(recipe, plan, facts, work)
        files = sent_files(plan, recipe.files(environment, None))
        check_room(facts, needed_bytes(files, 0), environment.unpacked_bytes)
        word = token() if plan.does("join") else None
        files = sent_files(plan, recipe.files(environment, word))
        archive = work / "board.tar"
        try:
            write_archive(files, archive)
        except OSError as error:
            raise storage_error(error, archive) from error
        stage("sending it")
        remote.run(RECEIVE, needs_root=True, given=archive, said=said)
    stage("setting the board up: unpacking, joining, starting")
    try:
        remote.run(START, needs_root=True)
    except RemoteError as error:
        if error.code != _FAILED_SET_UP:
            raise
        raise EnrolmentError(
            f"{SERVICES[0]} failed on the board:\n{error.said}",
            "mend what it says; the same command goes on from there",
        ) from error


def uninstall(remote: Remote, plan: Plan, stage: Stage) -> None:
    """Carry out a plan that takes Covey off a board.

    Raises:
        StorageError: something could not be removed.
        NetworkError: the connection broke off.
    """
    scripts = {"stop": STOP, "remove": REMOVE, "purge": PURGE}
    for step in plan.steps:
        stage(step.text)
        try:
            remote.run(scripts[step.action], needs_root=True)
        except RemoteError as error:
            raise StorageError(error.what, "the same command goes on from there") from error


def journal(remote: Remote) -> str:
    """Return the last lines of the device's journal; empty: there is none."""
    script = f"journalctl -u {SERVICES[1]} -n 8 --no-pager -o cat 2>/dev/null || true"
    return remote.run(script, needs_root=True).strip()
