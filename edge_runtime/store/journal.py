"""The journal: which bundle, adapter and personal layers a device has, and its last report. It survives a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.values import Sha256

if TYPE_CHECKING:
    from edge_runtime.store.store import Store


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


class JournalFile:
    """The journal of a state directory. Every change is on disk when its method returns.

    Args:
        store: the state directory.

    Raises:
        StorageError: the journal is damaged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._journal = store.journal()

    @property
    def entries(self) -> Journal:
        """What the journal holds now."""
        return self._journal

    def begin_plan(self, job: str, bundle_sha256: str, adapter_sha256: str) -> None:
        """Enter the job, bundle and adapter of a plan. Personal layers of another job or bundle are forgotten.

        Raises:
            StorageError: the disk is full or not writable.
        """
        journal = self._journal
        if (journal.job, journal.bundle_sha256) != (job, bundle_sha256):
            journal = msgspec.structs.replace(
                journal, personal_sha256=None, personal_round=None, personal_before_sha256=None
            )
        self._write(
            msgspec.structs.replace(journal, job=job, bundle_sha256=bundle_sha256, adapter_sha256=adapter_sha256)
        )

    def end_round(self, report: bytes, personal: PersonalRound | None) -> None:
        """Enter a round's report, together with the round's personal layers where it trained with backpropagation.

        Raises:
            StorageError: the disk is full or not writable.
        """
        journal = msgspec.structs.replace(self._journal, report=report)
        if personal is not None:
            journal = msgspec.structs.replace(
                journal,
                personal_sha256=personal.after_sha256,
                personal_round=personal.round,
                personal_before_sha256=personal.before_sha256,
            )
        self._write(journal)

    def _write(self, journal: Journal) -> None:
        if journal != self._journal:
            self._store.write_journal(journal)
            self._journal = journal
