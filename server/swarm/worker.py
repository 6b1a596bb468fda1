"""One process of a swarm: its sessions in an event loop, and what it tells the process that has started it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.errors import as_covey_error
from edge_runtime.protocol.signed import SERVER
from edge_runtime.signing.keys import KeyBook, read_private_key, read_public_keys
from server.swarm.counts import Counts
from server.swarm.entrance import Entrance
from server.swarm.protection import Plain, Signing
from server.swarm.session import KEEP_ALIVE_S, Session
from server.swarm.shared_tls import SharedTls
from server.swarm.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from edge_runtime.network.address import BrokerAddress
    from edge_runtime.network.cause import Cause
    from edge_runtime.signing.keys import Keys
    from server.swarm.members import Member
    from server.swarm.training import Training, TrainingOptions

_TICK_S = 0.25
_MISC_TICKS = int(KEEP_ALIVE_S / 12 / _TICK_S)
"""Ticks between two looks at whether a connection needs a sign of life."""
_AT_ONCE = 200
"""Sessions that are made or leave between two looks at the others."""
LEAVES_S = 20.0
"""Seconds that sessions may take to say goodbye."""


@dataclass(frozen=True)
class Orders:
    """What a process does.

    Attributes:
        address: the broker.
        fleet: the fleet's name.
        members: its sessions.
        server_key_file: the server's keys or certificates in PEM; None: messages are not signed.
        tags: see Surroundings.
        rate: logins a second.
        training: what the sessions train; None: they train in no time.
        leaves_s: seconds that the sessions may take to say goodbye.
    """

    address: BrokerAddress
    fleet: str
    members: Sequence[Member]
    server_key_file: Path | None
    tags: Sequence[str]
    rate: float
    training: TrainingOptions | None
    leaves_s: float


@dataclass(frozen=True)
class Tick:
    """What a process has seen since its last tick.

    Attributes:
        counts: numbers to add.
        causes: why logins failed, the last cause of each kind.
        refusal: why a plan was refused last; None: none was.
        error: exit code, finding and hint of the error that has ended the process; None: it goes on.
        is_last: whether it has ended.
    """

    counts: Counts
    causes: dict[str, Cause] = field(default_factory=dict)
    refusal: str | None = None
    error: tuple[int, str, str] | None = None
    is_last: bool = False


def run_worker(pipe: Connection, orders: Orders) -> None:
    """Run sessions until something arrives in the pipe, or its other end is closed; send a Tick now and then."""
    for number in (signal.SIGINT, signal.SIGTERM):  # of the whole group; the process that has started this one decides
        signal.signal(number, signal.SIG_IGN)
    counts, error = Counts(), None
    try:
        asyncio.run(_work(pipe, orders, counts))
    except Exception as caught:  # noqa: BLE001 the outermost wall of this process
        known = as_covey_error(caught)
        error = (known.exit_code, known.what, known.hint)
    with contextlib.suppress(BrokenPipeError):
        pipe.send(Tick(counts.take(), error=error, is_last=True))


async def _work(pipe: Connection, orders: Orders, counts: Counts) -> None:
    entrance = Entrance(orders.rate)
    with _training(orders) as training:
        files = orders.members[0].tls
        tls = SharedTls(None if files is None else files.ca_file) if orders.address.tls else None
        around = Surroundings(orders.address, orders.fleet, orders.tags, counts, entrance, training=training, tls=tls)
        keys = KeyBook()
        if orders.server_key_file is not None:
            for key in read_public_keys(orders.server_key_file):
                keys.add(SERVER, key)

        def should_leave() -> bool:
            with contextlib.suppress(BrokenPipeError):
                pipe.send(Tick(counts.take(), dict(around.causes), around.refusal))
            return pipe.poll()

        await live(orders.members, keys, around, should_leave, orders.leaves_s)


@contextlib.contextmanager
def _training(orders: Orders) -> Iterator[Training | None]:
    """Load what the sessions train, and forget it and its files after the block."""
    if orders.training is None:
        yield None
        return
    from server.swarm.training import Training  # noqa: PLC0415 a swarm that trains nothing stays small

    with tempfile.TemporaryDirectory(prefix="covey-swarm-") as folder:
        training = Training(orders.training, Path(folder), orders.members[0].tls)
        try:
            yield training
        finally:
            training.close()


async def live(
    members: Sequence[Member],
    keys: Keys,
    around: Surroundings,
    should_leave: Callable[[], bool],
    leaves_s: float = LEAVES_S,
) -> None:
    """Connect devices, and stay until ``should_leave``, which is asked now and then, says so; then leave.

    Args:
        members: the devices; those with a key sign.
        keys: the server's.
        around: what they share.
        should_leave: whether to leave.
        leaves_s: seconds that they may take to say goodbye.
    """
    boot_id = secrets.token_hex(8)
    sessions: list[Session] = []
    door = asyncio.create_task(around.entrance.run())
    ticks = 0
    try:
        for member in members:
            sessions.append(_session(member, keys, boot_id, around))
            sessions[-1].enter()
            if len(sessions) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        while not should_leave():
            await asyncio.sleep(_TICK_S)
            ticks += 1
            for session in sessions[ticks % _MISC_TICKS :: _MISC_TICKS]:
                session.client.loop_misc()
    finally:
        door.cancel()
        await asyncio.get_running_loop().run_in_executor(None, around.entrance.close)
        await _leave(sessions, around, leaves_s)


def _session(member: Member, keys: Keys, boot_id: str, around: Surroundings) -> Session:
    protection: Plain | Signing = Plain(around.fleet)
    if member.key_file is not None:
        key = read_private_key(Path(member.key_file))
        protection = Signing(member.name, around.fleet, boot_id, key, keys, around.counts)
    return Session(member.name, member.tls, protection, boot_id, around)


async def _leave(sessions: Sequence[Session], around: Surroundings, leaves_s: float) -> None:
    for index, session in enumerate(sessions):
        session.leave()
        if index % _AT_ONCE == 0:
            await asyncio.sleep(0)
    with contextlib.suppress(asyncio.TimeoutError):  # the broker does not take what is left to say
        await asyncio.wait_for(around.is_empty.wait(), leaves_s)
    for session in sessions:
        session.end()
