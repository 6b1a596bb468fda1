"""What ``covey advise`` knows of boards and earlier jobs: from a running server, from the ledger, or from files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.levels import Level
    from edge_runtime.protocol.profile import Profile
    from server.advice.board import Board

_PAGE = 200
"""Devices that are asked for at once."""


@dataclass(frozen=True)
class Known:
    """What a server or its ledger knows.

    Attributes:
        place: where it is from.
        boards: the devices as boards_page describes them, with their fleet's name.
        jobs: summaries of the jobs with the bundle.
    """

    place: str
    boards: list[dict[str, Any]]
    jobs: list[dict[str, Any]]


def known_of(args: argparse.Namespace, bundle_sha256: str) -> Known:
    """Return what the server that the options name knows for a bundle; without --server, what its ledger does.

    Raises:
        ConfigError: the server's fleet is another one than --fleet.
        CoveyError: the server does not answer, or refuses.
    """
    if args.server is None:
        return _from_ledger(args, bundle_sha256)
    from server.commands.reaching import open_client

    with open_client(args) as client:

        def page(after: str) -> dict[str, Any]:
            return client.get("/boards", bundle_sha256=bundle_sha256, most=_PAGE, after=after)

        boards = list(_pages(page))
        jobs = client.get("/jobs")["jobs"]
    others = {board["fleet"] for board in boards} - {args.fleet}
    if args.fleet is not None and others:
        raise ConfigError(f"{args.server} has the fleet {others.pop()}, not {args.fleet}", "leave --fleet out")
    return Known(args.server, boards, _with_bundle(jobs, bundle_sha256))


def _from_ledger(args: argparse.Namespace, bundle_sha256: str) -> Known:
    from server.storage.ledger import Ledger
    from server.storage.ledger_address import LEDGER_FILE, has_ledger
    from server.storage.registry_queries import fleets_of
    from server.views.boards import boards_page
    from server.views.summary import job_list

    path = args.state_dir / LEDGER_FILE
    if not has_ledger(path):
        return Known(str(path), [], [])
    with contextlib.closing(Ledger(path, read_only=True)) as ledger:
        fleets = fleets_of(ledger) if args.fleet is None else [args.fleet]
        boards = [
            board
            for fleet in fleets
            for board in _pages(lambda after, fleet=fleet: boards_page(ledger, fleet, bundle_sha256, _PAGE, after))  # type: ignore[misc]
        ]
        return Known(str(path), boards, _with_bundle(job_list(ledger), bundle_sha256))


def _pages(page: Callable[[str], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    after: str | None = ""
    while after is not None:
        found = page(after)
        yield from ({**board, "fleet": found["fleet"]} for board in found["boards"])
        after = found["next_after"]


def levels_behind(bundle: Bundle) -> dict[int, list[Level]]:
    """Return the levels of a bundle's training graphs that begin behind a split, by split.

    Raises:
        BundleError: the bundle's list of these graphs is missing or not valid.
    """
    from edge_runtime.bundle.behind import find_behind

    return {split: list(find_behind(bundle.path, bundle.manifest, split)) for split in bundle.manifest.splits}


def _with_bundle(jobs: list[dict[str, Any]], bundle_sha256: str) -> list[dict[str, Any]]:
    names = ("job", "state", "rounds", "loss_start", "loss_end", "accuracy_start", "accuracy_end")
    return [{name: job[name] for name in names} for job in jobs if job["bundle_sha256"] == bundle_sha256]


def boards_of(args: argparse.Namespace, known: Known) -> list[Board]:
    """Return the boards that the options name, those that are known, or all of --dir.

    Raises:
        ConfigError: there are none, or a named one is unknown.
    """
    from server.profiles.files import LATENCY_FILE, find_profile, read_profile
    from server.storage.ledger_address import LEDGER_FILE

    named = {board["device"]: board for board in known.boards}
    if len(named) < len(known.boards):
        names = [board["device"] for board in known.boards]
        twice = next(name for name in sorted(named) if names.count(name) > 1)
        raise ConfigError(f"two fleets of {known.place} have a device {twice}", "say which fleet: --fleet FLEET")
    if args.profile:
        found = []
        for name in args.profile:
            if name in named:
                found.append(_known_board(named[name]))
            else:
                found.append(_board(name, find_profile(name, args.dir, args.state_dir / LEDGER_FILE, args.fleet)))
        return found
    if named:
        return [_known_board(board) for board in known.boards]
    folders = sorted(latency.parent for latency in args.dir.glob(f"*/{LATENCY_FILE}"))
    if not folders:
        raise ConfigError(
            f"no board is known: no device in {known.place}, no profile in {args.dir}",
            "give --profile FILE, --server URL or --state-dir",
        )
    return [_board(folder.name, read_profile(folder)) for folder in folders]


def _known_board(board: dict[str, Any]) -> Board:
    import msgspec

    from edge_runtime.protocol.profile import Profile

    profile = None if board["profile"] is None else msgspec.convert(board["profile"], Profile)
    return _board(board["device"], profile, board)


def _board(name: str, profile: Profile | None, known: dict[str, Any] | None = None) -> Board:
    import msgspec

    from server.advice.board import MEASURE, Board, Done, Figure

    capability = {} if known is None else known["capability"] or {}
    done = () if known is None else msgspec.convert(known["done"], tuple[Done, ...])
    only_forward = (
        "the device announced that it trains forward-only" if capability.get("kind") == "forward-only" else None
    )
    if capability.get("bytes_free") is not None:
        memory = Figure(capability["bytes_free"], "free memory that the device announced")
    elif profile is not None and profile.measured is not None and profile.measured.before.memory_free_bytes is not None:
        memory = Figure(profile.measured.before.memory_free_bytes, "free memory when its profile was measured")
    elif profile is not None and profile.facts.memory_bytes is not None:
        source = f"all memory of {profile.facts.board} by its profile; what is free is not known, run {MEASURE}"
        memory = Figure(profile.facts.memory_bytes, source)
    else:
        memory = Figure(None, f"not known; run {MEASURE}")
    return Board(name, profile, memory, only_forward, done)
