"""A rollout, ordered on a page: one of what the server has, or a path; and its groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from server.api.orders import YES, Field, Outcome, Prospect
from server.queue.rollout_wish import (
    DEFAULT_GROUPS,
    DEFAULT_SOAK,
    DEFAULT_THRESHOLD,
    Wanted,
    seconds,
    share,
    sizes,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from edge_runtime.protocol.side_messages import ReleaseKind
    from server.queue.operations import Operations
    from server.storage.audit_records import Asker

_NAMES = 10
"""Devices of a group that are named."""
_KINDS: dict[ReleaseKind, str] = {
    "adapter": "an adapter",
    "bundle": "a bundle",
    "wheel": "a version of Covey (wheel)",
}


class NewRollout:
    """See Order.

    Args:
        operations: does it.
    """

    title, back = "Start a rollout", "/ui/rollouts"
    check_button, button = "See what will happen", "Start the rollout"

    def __init__(self, operations: Operations) -> None:
        self._rollouts = operations.rollouts

    def fields(self) -> list[Field]:
        """See Order."""
        choices = [(f"{choice.kind}:{choice.source}", choice.label) for choice in self._rollouts.choices()]
        return [
            Field("offer", "What this server has", "choice", options=choices, most=5000),
            Field("kind", "Or what is at the path below", "choice", options=list(_KINDS.items())),
            Field("path", "Path", help="An absolute path on the server's machine.", most=4000),
            Field("bundle", "Bundle of an adapter at that path", help="An absolute path there.", most=4000),
            Field("groups", "Groups", value=DEFAULT_GROUPS, is_required=True,
                  help="Devices up to and with each group, as counts or shares of the fleet that grow."),
            Field("threshold", "Failures that are allowed", value=DEFAULT_THRESHOLD, is_required=True,
                  help="Of a group's devices, as 5% or 0.05. With more, all devices go back by themselves."),
            Field("soak", "Wait after each group", value=DEFAULT_SOAK, help="As 30m, 1h or 2d.", is_required=True),
            Field("approve", "Each group waits for my approval", "box"),
        ]  # fmt: skip

    def look(self, given: Mapping[str, str]) -> Prospect:
        """See Order."""
        wanted = self._wanted(given)
        offer, groups = self._rollouts.planned(wanted)
        what = f"{_KINDS[wanted.kind]}, {offer.sha256[:12]} ({offer.size_bytes} bytes), of {wanted.source}"
        effects = [f"Devices get {what}."]
        if offer.bundle_path is not None and offer.bundle_sha256 is not None:
            effects.append(f"It belongs to the bundle {offer.bundle_sha256[:12]} in {offer.bundle_path}.")
        effects += [f"Group {number}: {_named(group)}." for number, group in enumerate(groups, 1)]
        then = "waits until you resume the rollout" if wanted.approve else "begins"
        after = f"{wanted.soak_s:g} s after" if wanted.soak_s else "once"
        effects.append(f"The next group {then} {after} the one before has succeeded.")
        effects.append(
            f"When more than {wanted.error_threshold:.3g} of a group's devices fail, every device that was asked goes "
            "back to what it had."
        )
        return Prospect("Start this rollout?", effects, wanted.source)

    def do(self, given: Mapping[str, str], asker: Asker) -> Outcome:
        """See Order."""
        return Outcome(f"/ui/rollouts/{self._rollouts.start(self._wanted(given), asker)}")

    def _wanted(self, given: Mapping[str, str]) -> Wanted:
        amounts: dict[str, Any] = {
            "groups": sizes(given["groups"]),
            "error_threshold": share(given["threshold"]),
            "soak_s": seconds(given["soak"]),
            "approve": given["approve"] == YES,
        }
        offer, path = given["offer"], given["path"]
        kind = next((known for known in _KINDS if known == given["kind"]), None)
        if bool(offer) == bool(path):
            what = "both a choice and a path are given" if offer else "nothing is chosen, and no path is given"
            raise ConfigError(what, "choose something that the server has, or write a path with what is there")
        if path:
            if kind is None:
                raise ConfigError("what is at the path is not said", "choose what it is")
            return Wanted(kind=kind, source=path, bundle=given["bundle"] or None, **amounts)
        if given["bundle"] or kind:
            raise ConfigError("kind and bundle are for a path, and none is given", "leave them empty")
        for choice in self._rollouts.choices():
            if f"{choice.kind}:{choice.source}" == offer:
                return Wanted(kind=choice.kind, source=choice.source, bundle=choice.bundle, **amounts)
        raise ConfigError("the server does not have it any more", "choose something else of the list")


def _named(devices: list[str]) -> str:
    more = f" and {len(devices) - _NAMES} more" if len(devices) > _NAMES else ""
    number = "1 device" if len(devices) == 1 else f"{len(devices)} devices"
    return f"{number}, {', '.join(devices[:_NAMES])}{more}"
