"""Changes the journal of a state directory: each change has a name, and is on disk when its method returns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_runtime.store.journal import Deaths, JournalDamagedError
from edge_runtime.store.personal import journal_of_personal

if TYPE_CHECKING:
    from edge_runtime.store.journal import Begun, Journal, PersonalRound
    from edge_runtime.store.store import Store


class JournalFile:
    """The journal of a state directory. Every change is on disk when its method returns.

    Args:
        store: the state directory.

    Raises:
        StorageError: the journal cannot be read. A damaged one is set aside, and a new one begun, with the personal
            layers that are on disk: the server has no copy of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        try:
            self._journal = store.journal()
        except JournalDamagedError as error:
            store.set_journal_aside(error.what)
            self._journal = journal_of_personal(store)

    @property
    def entries(self) -> Journal:
        """What the journal holds now."""
        return self._journal

    def begin_plan(self, job: str, bundle_sha256: str, adapter_sha256: str, begun: Begun | None) -> None:
        """Enter the job, bundle and adapter of a plan. Personal layers of another job or bundle are forgotten.

        Args:
            job: name of the job.
            bundle_sha256: its bundle.
            adapter_sha256: its adapter.
            begun: what is trained now; None: nothing is.

        Raises:
            StorageError: the disk is full or not writable.
        """
        journal = self._journal
        if (journal.job, journal.bundle_sha256) != (job, bundle_sha256):
            journal = msgspec.structs.replace(
                journal, personal_sha256=None, personal_round=None, personal_before_sha256=None
            )
        journal = msgspec.structs.replace(journal, job=job, bundle_sha256=bundle_sha256, adapter_sha256=adapter_sha256)
        self._write(msgspec.structs.replace(journal, begun=begun))

    def end_plan(self) -> None:
        """Enter that nothing is trained any more: the plan was refused or abandoned, or the process is told to stop.

        Raises:
            StorageError: the disk is full or not writable; the next change enters it.
        """
        if self._journal.begun is not None:
            self._journal = msgspec.structs.replace(self._journal, begun=None)
            self._store.write_journal(self._journal)

    def enter_death(self, machine_boot_id: str | None) -> Deaths | None:
        """Enter that the process before this one died while it trained; return the deaths, None where it did not.

        Args:
            machine_boot_id: of the machine's start; another one than before: the machine itself has started again.

        Raises:
            StorageError: the disk is full or not writable.
        """
        begun, deaths = self._journal.begun, self._journal.deaths
        if begun is None:
            return None
        before = deaths if deaths is not None and deaths.last.work == begun.work else Deaths(begun, count=0)
        was_restarted = (
            None not in (begun.machine_boot_id, machine_boot_id) and begun.machine_boot_id != machine_boot_id
        )
        entered = msgspec.structs.replace(
            before,
            last=begun,
            count=before.count + (not was_restarted),
            restarts=before.restarts + was_restarted,
        )
        self._write(msgspec.structs.replace(self._journal, begun=None, deaths=entered))
        return entered

    def change_deaths(self, deaths: Deaths) -> None:
        """Enter that work was refused for its deaths, or is tried once more.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._write(msgspec.structs.replace(self._journal, deaths=deaths))

    def end_round(self, report: bytes, personal: PersonalRound | None) -> None:
        """Enter a round's report, together with the round's personal layers where it trained with backpropagation.

        Raises:
            StorageError: the disk is full or not writable.
        """
        begun, deaths = self._journal.begun, self._journal.deaths
        if begun is not None and deaths is not None and begun.work == deaths.last.work:
            deaths = None
        journal = msgspec.structs.replace(self._journal, report=report, acknowledged=False, begun=None, deaths=deaths)
        if personal is not None:
            journal = msgspec.structs.replace(
                journal,
                personal_sha256=personal.after_sha256,
                personal_round=personal.round,
                personal_before_sha256=personal.before_sha256,
            )
        self._write(journal)

    def acknowledge(self) -> None:
        """Enter that the server has acknowledged the report, or that it is not to be sent again.

        Raises:
            StorageError: the disk is full or not writable.
        """
        self._write(msgspec.structs.replace(self._journal, acknowledged=True))

    def _write(self, journal: Journal) -> None:
        if journal != self._journal:
            self._store.write_journal(journal)
            self._journal = journal
