"""What an operator can ask of a running server about identities: tokens, approvals, revocation, other names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import ConfigError
from edge_runtime.values import NAME_PATTERN
from server.storage import device_queries, trust_queries
from server.trust.folder import join_url, open_trust
from server.trust.tokens import check_names, duration_s, make_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from server.queue.acts import Acts
    from server.rounds.coordinator import Coordinator
    from server.storage.audit_records import Asker
    from server.storage.ledger import Ledger

_LIST = "see: covey device list --pending"


class TrustOperations:
    """The operator's side of the fleet's authority. Safe to use from several threads.

    Args:
        ledger: the ledger.
        state_dir: the server's state directory.
        fleet: the fleet's name.
        acts: does something in the server's thread, and audits it.
        coordinator: is told who is gone, and who is let out of quarantine.
    """

    def __init__(self, ledger: Ledger, state_dir: Path, fleet: str, acts: Acts, coordinator: Coordinator) -> None:
        self._ledger, self._state_dir, self._fleet, self._acts = ledger, state_dir, fleet, acts
        self._coordinator = coordinator

    def join_url(self, given: str | None = None) -> str:
        """Return where devices join; ``given``: where else than at the fleet's first host.

        Raises:
            ConfigError: the fleet has no authority, or its certificate is not for this host.
        """
        return join_url(open_trust(self._state_dir), given)

    def checked_tokens(self, names: Sequence[str], valid: str) -> float:
        """Return for how many seconds tokens are good that are to be made; none is made.

        Args:
            names: names of the devices.
            valid: the time, as ``1h``.

        Raises:
            ConfigError: a name can be none or comes twice, or the time is none.
        """
        valid_s = duration_s(valid)
        check_names(names, valid_s)
        return valid_s

    def tokens(self, names: Sequence[str], server_url: str, valid_s: float, asker: Asker) -> dict[str, str]:
        """Return a new join token for each name; the audit has the names only.

        Raises:
            ConfigError: the fleet has no authority, or a name can be none.
        """
        subject = names[0] if len(names) == 1 else f"{len(names)} names"
        with self._acts.entry(asker, "token", subject, f"for {valid_s:g} s") as number:
            authority = open_trust(self._state_dir).authority

            def wish() -> dict[str, str]:
                return make_tokens(self._ledger, authority, server_url, names, valid_s, self._ledger.now_s())

            return self._acts.turn(number, asker, subject, wish)

    def pending(self) -> list[dict[str, Any]]:
        """Return the devices that wait for approval, with what they say of themselves."""
        return [
            {
                "fleet": token.fleet,
                "device": token.device,
                "address": token.address,
                "asked_at": token.asked_at,
                "key_sha256": token.key_sha256,
                **(token.facts or {}),
            }
            for token in trust_queries.pending_joins(self._ledger, self._fleet)
        ]

    def decide(self, device: str, state: str, asker: Asker) -> None:
        """Approve or reject a device that waits; it learns this when it asks again.

        Args:
            device: its name.
            state: ``approved`` or ``rejected``.
            asker: who decides.

        Raises:
            ConfigError: no device of this name waits, or, for an approval, several do.
        """

        def wish() -> None:
            waiting = [one for one in trust_queries.pending_joins(self._ledger, self._fleet) if one.device == device]
            if not waiting:
                raise ConfigError(f"no device {device} waits for approval", _LIST)
            if state == "approved" and len(waiting) > 1:
                places = ", ".join(str(one.address) for one in waiting)
                raise ConfigError(
                    f"{len(waiting)} devices wait under the name {device}: {places}",
                    f"covey device reject {device}, and give each a token of its own",
                )
            self._ledger.join_decided(self._fleet, device, state)

        self._acts.do(asker, "approve" if state == "approved" else "reject", device, wish)

    def revoke(self, device: str, asker: Asker) -> int:
        """Revoke all certificates of a device and its tokens that are not used; return how many certificates.

        Raises:
            ConfigError: it has neither.
        """

        def wish() -> int:
            with self._ledger.transaction():
                certificates = self._ledger.revoke_device(self._fleet, device, "revoked by the operator")
                tokens = self._ledger.cancel_tokens(self._fleet, device)
            if certificates == tokens == 0:
                raise ConfigError(
                    f"{device} has no certificate that is not revoked, and no join token", "see: covey device list"
                )
            self._coordinator.expel(device)
            self._coordinator.release(device)  # whoever joins under its name has another identity
            return certificates

        return int(self._acts.do(asker, "revoke", device, wish))

    def release(self, device: str, asker: Asker) -> None:
        """Let a device out of quarantine: only one machine has its identity now.

        Raises:
            ConfigError: it is in none.
        """

        def wish() -> None:
            if device not in device_queries.quarantined_devices(self._ledger, self._fleet):
                raise ConfigError(f"{device} is in no quarantine", "see: covey device list")
            self._coordinator.release(device)

        self._acts.do(asker, "release", device, wish)

    def forget(self, device: str) -> bool:
        """Revoke what a device has that is gone; return whether it had a certificate. For the server's own thread."""
        self._ledger.cancel_tokens(self._fleet, device)
        return self._ledger.revoke_device(self._fleet, device, "forgotten by the operator") > 0

    def rename(self, device: str, new_name: str, asker: Asker) -> None:
        """Give a device another name, which it takes when it asks the server next.

        Raises:
            ConfigError: it has no certificate, or the name is taken or can be none.
        """

        def wish() -> None:
            if not re.match(NAME_PATTERN, new_name):
                raise ConfigError(
                    f"{new_name!r} cannot be the name of a device", "use up to 63 letters, digits, dots and dashes"
                )
            if trust_queries.is_known_name(self._ledger, self._fleet, new_name):
                raise ConfigError(f"the name {new_name} is taken", "covey device forget, or choose another name")
            if not self._ledger.rename_certificates(self._fleet, device, new_name):
                raise ConfigError(
                    f"{device} has no valid certificate of this fleet", "change name in its edge.toml instead"
                )

        self._acts.do(asker, "rename", device, wish, new_name)
