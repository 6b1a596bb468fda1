"""Carries the rollouts of a fleet out: asks devices, takes their answers, and enters every change before it acts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.errors import CoveyError, ProtocolError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.side_messages import Release
from edge_runtime.protocol.topics import topic_for
from server.errors import RolloutError
from server.fleet.mirrors import mirror_for
from server.job.selector import SWARM
from server.rollouts import rollout as machine
from server.rollouts.described import rollout_of
from server.rollouts.rollout import ENDED, Rollout
from server.storage.rollout_queries import rollouts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from edge_runtime.network.transport import Transport
    from edge_runtime.protocol.side_messages import Released, ReleaseKind
    from server.fleet.devices import Device
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger
    from server.storage.rollout_queries import RolloutRecord

_LOG = logging.getLogger(__name__)


class Rollouts:
    """The rollouts of one fleet. For the server's own thread.

    Args:
        fleet: name of the fleet.
        ledger: has the rollouts.
        blobs: serves what is rolled out.
        transport: the server's connection.
        blob_url: base address of the blobs.
        devices: the devices that have sent a message, by name.
        now: returns the seconds since 1970 by the server's clock, since a soak goes on over a restart.
        sign: signs what is rolled out, by kind, name and hash, where the fleet has an authority.

    Attributes:
        blob_mirror: base address of a cache of the blobs that devices ask first; None: there is none.
    """

    def __init__(
        self,
        fleet: str,
        ledger: Ledger,
        blobs: BlobStore,
        transport: Transport,
        blob_url: str,
        devices: Mapping[str, Device],
        now: Callable[[], float],
        sign: Callable[[ReleaseKind, str, str], None] = lambda _kind, _name, _sha256: None,
    ) -> None:
        self.blob_mirror: str | None = None
        self._sign = sign
        self._fleet, self._ledger, self._blobs, self._transport = fleet, ledger, blobs, transport
        self._blob_url, self._devices, self._now = blob_url, devices, now
        self._rollouts: dict[int, Rollout] = {}
        self._records: dict[int, RolloutRecord] = {}
        self._sent: dict[str, tuple[object, ...]] = {}
        self._read()

    def _read(self) -> None:
        for record in rollouts_of(self._ledger, self._fleet):
            self._records[record.id] = record
            if record.id not in self._rollouts:
                self._rollouts[record.id] = rollout_of(record)
                self._serve(self._rollouts[record.id])

    def _serve(self, rollout: Rollout) -> None:
        """Serve what is rolled out; where it is gone, devices cannot fetch it, and the log says why."""
        if rollout.state in ("halted", "aborted", "rolling-back"):
            return
        try:
            name = "covey"
            path = rollout.path if rollout.kind == "bundle" else rollout.bundle_path
            if path is not None:
                bundle = open_bundle(Path(path))
                name = bundle.manifest.model.name
                self._blobs.add_bundle(bundle)
                self._sign("bundle", name, bundle.sha256)
            if rollout.kind != "bundle":
                self._blobs.add_file(rollout.sha256, Path(rollout.path))
                self._sign(rollout.kind, name, rollout.sha256)
        except CoveyError as error:
            _LOG.error("what a rollout needs is gone: %s", error)

    # -- what the operator asks for -----------------------------------------------------------------------------

    def start(self, rollout: Rollout) -> int:
        """Enter a new rollout; return its number.

        Raises:
            RolloutError: another one of the same slot is at work.
        """
        for number, other in self._rollouts.items():
            if other.state not in ENDED and _slot(other) == _slot(rollout):
                raise RolloutError(
                    f"rollout {number} is {other.state}", f"wait for its end, or: covey rollout abort {number}"
                )
        begun = machine.begin(rollout)
        self._ledger.rollout_entered(self._fleet, rollout.path, begun.state, _json(begun))
        self._read()
        return max(self._rollouts)

    def change(self, number: int, change: Callable[[Rollout], Rollout]) -> str:
        """Pause, resume or abort a rollout; return its state.

        Raises:
            RolloutError: there is none of this number, or it is in no state for that.
        """
        self._enter(number, change(self.rollout(number)))
        return self._rollouts[number].state

    def rollout(self, number: int) -> Rollout:
        """Return a rollout.

        Raises:
            RolloutError: there is none of this number.
        """
        if number not in self._rollouts:
            raise RolloutError(f"there is no rollout {number}", "see: covey rollout list")
        return self._rollouts[number]

    def forget(self, device: str) -> None:
        """Wait no more for a device that the operator has forgotten."""
        for number, rollout in list(self._rollouts.items()):
            if rollout.state not in ENDED:
                self._enter(number, machine.forget(rollout, set(rollout.devices) - {device}))

    # -- the fleet ----------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Take every rollout as far as it can go now, and ask the devices that owe an answer.

        Raises:
            StorageError: the ledger cannot be written.
        """
        if not self._rollouts:
            return
        here = {
            name
            for name, device in self._devices.items()
            if device.is_here and device.quarantine is None and not _is_of_swarm(device)
        }
        for number in self._newest():
            rollout = self._rollouts[number]
            while (after := machine.step(rollout, here, self._now())) != rollout:
                self._enter(number, after)
                rollout = after
        for name in sorted(here):
            self._ask(name)

    def take(self, device: str, released: Released) -> None:
        """Take a device's answer.

        Raises:
            ProtocolError: it is in another device's name.
        """
        if released.device != device:
            raise ProtocolError(
                f"{device} answers a release in the name of {released.device}",
                "check name in the edge.toml of both: every device needs a name of its own",
            )
        rollout = self._rollouts.get(released.rollout)
        if rollout is None or rollout.kind != released.kind:
            return  # of a ledger that was lost
        if released.outcome == "failed":
            _LOG.warning("rollout %d: %s keeps what it has: %s", released.rollout, device, released.reason)
        self._enter(released.rollout, machine.took(rollout, device, released.outcome, released.reason))

    def _newest(self) -> list[int]:
        newest = {_slot(rollout): number for number, rollout in sorted(self._rollouts.items())}
        unended = {number for number, rollout in self._rollouts.items() if rollout.state not in ENDED}
        return sorted(unended | set(newest.values()))

    def _ask(self, name: str) -> None:
        """Send a device what it owes an answer to; once for each time that it announces itself."""
        for slot in ("model", "covey"):
            orders = [
                (number, order)
                for number, rollout in sorted(self._rollouts.items())
                if _slot(rollout) == slot and (order := machine.wanted(rollout, name)) is not None
            ]
            key = f"{slot}/{name}"
            if not orders:
                self._sent.pop(key, None)
                continue
            number, order = orders[-1]
            birth = self._devices[name].birth
            mark = (number, order, birth and (birth.boot_id, birth.connection, birth.epoch))
            if self._sent.get(key) != mark:
                self._sent[key] = mark
                self._publish(name, number, order)

    def _publish(self, name: str, number: int, order: machine.Step) -> None:
        rollout = self._rollouts[number]
        release = Release(
            rollout=number,
            kind=rollout.kind,
            step=order,
            sha256=rollout.sha256,
            size_bytes=rollout.size_bytes,
            bundle_sha256=rollout.bundle_sha256,
            blob_url=self._blob_url,
            blob_mirror=mirror_for(self._devices[name].birth, self.blob_mirror),
            file_name=Path(rollout.path).name if rollout.kind == "wheel" else None,
        )
        self._transport.publish(topic_for(self._fleet, name, "release"), encode_message(release))

    def _enter(self, number: int, after: Rollout) -> None:
        before = self._rollouts[number]
        if after == before:
            return
        self._ledger.rollout_changed(number, after.state, _json(after), has_ended=after.state in ENDED)
        self._rollouts[number] = after
        if after.state != before.state:
            why = f": {after.reason}" if after.reason else ""
            _LOG.info(
                "rollout %d is %s, group %d of %d%s", number, after.state, after.group + 1, len(after.groups), why
            )


def _slot(rollout: Rollout) -> str:
    """Return what a rollout replaces on a device: the model that it predicts with, or Covey itself."""
    return "covey" if rollout.kind == "wheel" else "model"


def _json(rollout: Rollout) -> str:
    return msgspec.json.encode(rollout).decode()


def _is_of_swarm(device: Device) -> bool:
    """Whether a device is a session of ``covey swarm``, which takes no release."""
    return device.birth is not None and SWARM in device.birth.tags
