"""The journal: which bundle, adapter and personal layers a device has, and its last report. It survives a restart."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edge_runtime.values import Sha256


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What survives a restart.

    Attributes:
        job: name of the job of ``adapter_sha256``.
        bundle_sha256: current bundle.
        adapter_sha256: current adapter; None: the bundle's initial one.
        report: the last round's report as it was sent; sent again when the same plan arrives again.
        personal_sha256: file of the job's personal layers; None: there are none.
        personal_round: the round that made them.
        personal_before_sha256: the personal layers before that round: a new attempt at it begins with them.
    """

    job: str | None = None
    bundle_sha256: Sha256 | None = None
    adapter_sha256: Sha256 | None = None
    report: bytes | None = None
    personal_sha256: Sha256 | None = None
    personal_round: int | None = None
    personal_before_sha256: Sha256 | None = None

    def personal_at_start_of(self, round_index: int) -> Sha256 | None:
        """Return the file of the personal layers that a round begins with; None: it begins with the shared layers."""
        return self.personal_before_sha256 if self.personal_round == round_index else self.personal_sha256


@dataclass(frozen=True)
class PersonalRound:
    """The personal layers before and after a round; None: there are none.

    Attributes:
        round: index of the round.
        before_sha256: their file before it.
        after_sha256: their file after it.
    """

    round: int
    before_sha256: str | None
    after_sha256: str | None
