"""The journal: which bundle, adapter and personal layers a device has, and its last report. It survives a restart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.errors import StorageError, system_error, wall
from edge_runtime.files.checked import decode_checked
from edge_runtime.values import Sha256

if TYPE_CHECKING:
    from pathlib import Path

JOURNAL_FILE = "journal.json"


class JournalDamagedError(StorageError):
    """The journal is empty, damaged or of another version of Covey: it says nothing."""


class Begun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A plan that the device has begun to train, and has neither reported, refused nor abandoned.

    Attributes:
        job: name of its job.
        bundle_sha256: its bundle.
        round: its round.
        attempt: its attempt.
        kind: how it trains.
        level: number of active layers, or the top level; None: it trains with forward passes.
        began_at: seconds since 1970.
        bytes_needed: estimate of the memory that it needs; None: not known.
        bytes_free: memory that was free when it began; None: not known.
        machine_boot_id: of the machine's start, from its kernel; None: not known.
    """

    job: str
    bundle_sha256: Sha256
    round: int
    attempt: int
    kind: Literal["forward-only", "backprop"]
    level: Level | None
    began_at: float
    bytes_needed: int | None = None
    bytes_free: int | None = None
    machine_boot_id: str | None = None

    @property
    def work(self) -> tuple[str, str, str, Level | None]:
        """What it takes the same memory for in each round: job, bundle, kind and level."""
        return self.job, self.bundle_sha256, self.kind, self.level


class Deaths(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ends of the process, while it trained, that nobody asked for: killed for want of memory, crashed, power cut.

    Attributes:
        last: what it trained when it died last.
        count: how often the process has died of the same work (Begun.work) without a report of it in between, while
            the machine went on.
        refused_round: the round that was refused for that; None: none was.
        restarts: how often the whole machine has started again during that work: a power cut, or a board that hung.
        refusals: how often that work was refused for a while, and tried again after it.
    """

    last: Begun
    count: int = 1
    refused_round: int | None = None
    restarts: int = 0
    refusals: int = 0


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What survives a restart.

    Attributes:
        job: name of the job of ``adapter_sha256``.
        bundle_sha256: current bundle.
        adapter_sha256: current adapter; None: the bundle's initial one.
        report: the last round's report as it was sent; sent again when the same plan arrives again.
        acknowledged: whether the server has acknowledged that report; until then it is sent again.
        begun: the plan that is being trained; None: none is.
        deaths: the last deaths while training; None: there were none, or the same work was reported since.
        personal_sha256: file of the job's personal layers; None: there are none.
        personal_round: the round that made them.
        personal_before_sha256: the personal layers before that round: a new attempt at it begins with them.
    """

    job: str | None = None
    bundle_sha256: Sha256 | None = None
    adapter_sha256: Sha256 | None = None
    report: bytes | None = None
    acknowledged: bool = False
    begun: Begun | None = None
    deaths: Deaths | None = None
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


def read_journal(path: Path) -> Journal:
    """Return a journal; an empty one where there is no file.

    Raises:
        JournalDamagedError: its content is no journal of this version, or it is a folder.
        StorageError: it cannot be read.
    """

    def damaged(cause: str) -> JournalDamagedError:
        return JournalDamagedError(
            f"the journal {path} is damaged or of another version of Covey: {cause}",
            "start covey-edge run: it sets the journal aside, and gets what is missing from the server",
        )

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Journal()
    except IsADirectoryError as error:
        raise damaged("it is a folder") from error
    except OSError as error:
        raise system_error(error) from error
    if not data.strip(b"\0 \t\r\n"):
        raise damaged(f"it holds {len(data)} bytes, and none of them says anything" if data else "it is empty")
    with wall(damaged):
        journal: Journal = decode_checked(data, type=Journal)
    return journal
