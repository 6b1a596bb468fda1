"""What an operator can ask of a running server about rollouts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError
from server.job.selector import SWARM
from server.queue.rollout_wish import LONGEST_SOAK_S
from server.rollouts import rollout as machine
from server.rollouts.choices import choices_of
from server.rollouts.described import one_rollout, rollout_list
from server.rollouts.groups import check_groups, groups_of, takes_everyone
from server.rollouts.offers import Offers
from server.rollouts.rollout import Rollout
from server.storage.registry_queries import device_names

if TYPE_CHECKING:
    from pathlib import Path

    from server.queue.acts import Acts
    from server.queue.rollout_wish import Wanted
    from server.rollouts.choices import Choice
    from server.rollouts.offers import Offer
    from server.rollouts.rollouts import Rollouts
    from server.storage.audit_records import Asker
    from server.storage.blobs import BlobStore
    from server.storage.ledger import Ledger


class RolloutOperations:
    """The operator's side of rollouts. Safe to use from several threads.

    Args:
        ledger: the ledger.
        blobs: adapters of jobs.
        state_dir: the server's state directory.
        fleet: the fleet's name.
        acts: does something in the server's thread, and audits it.
        rollouts: carries rollouts out.
    """

    def __init__(
        self,
        ledger: Ledger,
        blobs: BlobStore,
        state_dir: Path,
        fleet: str,
        acts: Acts,
        rollouts: Rollouts,
    ) -> None:
        self._ledger, self._blobs, self._fleet, self._acts, self._rollouts = ledger, blobs, fleet, acts, rollouts
        self._offers = Offers(ledger, blobs, state_dir / "rollouts")

    def choices(self) -> list[Choice]:
        """Return what this server has that could be rolled out."""
        return choices_of(self._ledger, self._blobs, self._fleet)

    def planned(self, wanted: Wanted) -> tuple[Offer, list[list[str]]]:
        """Return what a rollout would bring, checked, and the devices of each of its groups; nothing begins.

        Raises:
            ConfigError, BundleError, RolloutError: as start has them.
        """
        offer = self._offer(wanted)
        return offer, self._groups(wanted, offer)

    def start(self, wanted: Wanted, asker: Asker) -> int:
        """Begin a rollout; return its number.

        Raises:
            ConfigError: groups, threshold, soak or source are wrong, or no device is known.
            BundleError: what is to be rolled out is damaged.
            RolloutError: another one is at work, or a job has no adapter.
        """
        detail = f"{wanted.kind} in groups {','.join(wanted.groups)}"
        with self._acts.entry(asker, "rollout start", wanted.source, detail) as number:
            offer = self._offer(wanted)

            def wish() -> int:
                return self._rollouts.start(
                    Rollout(
                        **asdict(offer),
                        groups=self._groups(wanted, offer),
                        takes_everyone=takes_everyone(wanted.groups),
                        error_threshold=wanted.error_threshold,
                        soak_s=wanted.soak_s,
                        approve=wanted.approve,
                        state="running",
                        devices={},
                    )
                )

            return self._acts.turn(number, asker, wanted.source, wish)

    def _offer(self, wanted: Wanted) -> Offer:
        """Check what is asked for, and return what is to be rolled out."""
        check_groups(wanted.groups)
        if not 0 <= wanted.error_threshold < 1:
            raise ConfigError(f"the threshold {wanted.error_threshold:g} is not from 0 to below 1", "5% is 0.05")
        if not 0 <= wanted.soak_s <= LONGEST_SOAK_S:
            raise ConfigError(f"a soak of {wanted.soak_s:g} s is not between 0 and 90 days", "give it as 1h or 30m")
        return self._offers.find(wanted.kind, wanted.source, wanted.bundle)

    def _groups(self, wanted: Wanted, offer: Offer) -> list[list[str]]:
        known = device_names(self._ledger, self._fleet, without_tag=SWARM)
        return groups_of(known, wanted.groups, offer.sha256)

    def list(self) -> list[dict[str, Any]]:
        """Return all rollouts of the fleet, the oldest first."""
        return rollout_list(self._ledger, self._fleet)

    def show(self, number: int) -> dict[str, Any]:
        """Return one rollout.

        Raises:
            RolloutError: there is none of this number.
        """
        return one_rollout(self.list(), number)

    def pause(self, number: int, asker: Asker) -> str:
        """Pause a rollout: no further device is asked; return its state."""
        return str(
            self._acts.do(asker, "rollout pause", str(number), lambda: self._rollouts.change(number, machine.pause))
        )

    def resume(self, number: int, asker: Asker) -> str:
        """Let a rollout go on after a pause, or its next group begin; return its state."""
        return str(
            self._acts.do(asker, "rollout resume", str(number), lambda: self._rollouts.change(number, machine.resume))
        )

    def abort(self, number: int, asker: Asker) -> str:
        """Take a rollout back; return its state."""

        def wish() -> str:
            return self._rollouts.change(number, lambda rollout: machine.abort(rollout, "aborted by the operator"))

        return str(self._acts.do(asker, "rollout abort", str(number), wish))

    def forget(self, device: str) -> None:
        """Wait no more for a device. For the server's own thread."""
        self._rollouts.forget(device)
