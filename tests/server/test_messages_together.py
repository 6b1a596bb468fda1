"""Messages that wait together wait for the disk once; what rests on the ledger is said after that."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.errors import StorageError
from edge_runtime.network.in_process import Hub
from edge_runtime.network.transport import Connected, Message
from server.rounds.held import HeldTransport
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(tmp_path / LEDGER_FILE)) as made:
        yield made


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths that this process has had synced, from now on; SQLite's own syncs are not among them."""
    found: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        found.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def level(ledger: Ledger) -> int:
    """Return SQLite's number of how commits are synced: 1 NORMAL, 2 FULL."""
    database: Any = ledger.database
    return int(database._run("PRAGMA synchronous")[0])


@pytest.mark.sqlite("what is synced is the file")
def test_a_block_is_synced_once_at_its_end(ledger: Ledger, syncs: list[str]) -> None:
    assert level(ledger) == 2
    with ledger.synced_at_the_end():
        assert level(ledger) == 1
        for index in range(20):
            ledger.device_state("f", f"pi-{index}", "online")
        assert syncs == []
    assert [path.rsplit("/", 1)[-1] for path in syncs] == [f"{LEDGER_FILE}-wal"]
    assert level(ledger) == 2
    with ledger.synced_at_the_end():
        pass
    assert len(syncs) == 1  # nothing was written


@pytest.mark.sqlite("what is synced is the file")
def test_a_block_that_raises_keeps_what_it_wrote_and_syncs_it(ledger: Ledger, syncs: list[str]) -> None:
    def fail() -> None:
        with ledger.synced_at_the_end():
            ledger.device_state("f", "pi", "online")
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        fail()
    assert len(syncs) == 1
    assert level(ledger) == 2
    assert ledger.device_quarantined("f", "pi", None)  # the device is there


@pytest.mark.sqlite("what is synced is the file")
def test_another_thread_that_writes_meanwhile_waits_for_the_disk_itself(ledger: Ledger, syncs: list[str]) -> None:
    with ledger.synced_at_the_end():
        ledger.device_state("f", "mine", "online")
        other = threading.Thread(target=lambda: ledger.device_state("f", "theirs", "online"))
        other.start()
        other.join()
        assert len(syncs) == 1  # at the end of its transaction
        ledger.device_state("f", "mine", "busy")
    assert len(syncs) == 2


def test_what_is_published_in_a_block_is_said_after_the_disk_has_it() -> None:
    hub = Hub()
    listener = hub.join()
    listener.subscribe("t")
    assert isinstance(listener.receive(0), Connected)
    transport, order = HeldTransport(hub.join()), []

    @contextlib.contextmanager
    def on_disk() -> Iterator[None]:
        yield
        order.append(("synced", listener.receive(0)))

    with transport.holding(on_disk):
        transport.publish("t", b"first")
        transport.publish("t", b"second")
        other = threading.Thread(target=lambda: transport.publish("t", b"of another thread"))
        other.start()
        other.join()
    heard = [listener.receive(0), listener.receive(0), listener.receive(0)]
    assert order == [("synced", Message("t", b"of another thread"))]
    assert heard == [Message("t", b"first"), Message("t", b"second"), None]
    transport.publish("t", b"at once")
    assert listener.receive(0) == Message("t", b"at once")


def test_nothing_of_a_block_is_said_where_the_disk_fails() -> None:
    hub = Hub()
    listener = hub.join()
    listener.subscribe("t")
    assert isinstance(listener.receive(0), Connected)
    transport = HeldTransport(hub.join())

    @contextlib.contextmanager
    def on_disk() -> Iterator[None]:
        yield
        raise StorageError("the disk is full")

    def fail() -> None:
        with transport.holding(on_disk):
            transport.publish("t", b"taken")

    with pytest.raises(StorageError):
        fail()
    assert listener.receive(0) is None
    transport.publish("t", b"later")
    assert listener.receive(0) == Message("t", b"later")
