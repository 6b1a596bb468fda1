"""A discarded job takes along what its rounds have left on disk, and nothing that another job needs."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from server.storage import queries
from server.storage.discard import discard_job
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import ClosedRound, RoundFigures

if TYPE_CHECKING:
    from pathlib import Path

    from kept_blobs import KeptBlobs


def test_moments_go_with_their_job_unless_another_has_the_same(kept_blobs: KeptBlobs, tmp_path: Path) -> None:
    blobs = kept_blobs.open()
    kinds = ("adapter", "log", "moment")
    made = {(job, kind): blobs.add(f"{job} {kind}".encode()).sha256 for job in ("old", "new") for kind in kinds}
    shared = blobs.add(b"the first round of both").sha256
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        for job in ("old", "new"):
            ledger.begin_job(job, "default", "b" * 64, {"rounds": 2})
            for index, moment in enumerate((shared, made[job, "moment"])):
                ledger.open_round(job, index, 0, '{"split": 2, "rule": {}}', "a" * 64, None, {"pi": None})
                figures = RoundFigures(2, None, None, None, None, moment_sha256=moment)
                log, adapter = made[job, "log"], made[job, "adapter"]
                ledger.close_round(job, 0, ClosedRound(index, "a" * 64, log, adapter, 9, 5, 1.5, figures))
        discard_job(ledger, blobs, tmp_path, "old")
        assert queries.job_names(ledger) == ["new"]
    assert kept_blobs.names() == {shared, *(made["new", kind] for kind in kinds)}
