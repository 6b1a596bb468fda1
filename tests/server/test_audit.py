"""Every change that an operator asks for is in the audit: who, from where, what, and what became of it."""

from __future__ import annotations

import io
import json
from contextlib import closing, redirect_stdout
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from operator_sites import Site, confirm, form_of, site

from edge_runtime.errors import ConfigError
from server.api.audit_schema import AuditPage
from server.cli import main
from server.storage.audit_queries import audit_of, newest_entry
from server.storage.audit_records import Asker
from server.storage.audit_writes import ENTRIES_KEPT
from server.storage.backup import create_backup, restore_backup
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.views.audit import audit_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path, ("reviews",)) as found:
        yield found


def entries(ledger: Ledger) -> list[tuple[Any, ...]]:
    """Without sign-ins; the oldest first."""
    found = [entry for entry in audit_of(ledger, 1000) if not entry.action.startswith("sign ")]
    return [(one.actor, one.way, one.action, one.subject, one.outcome) for one in reversed(found)]


def test_changes_over_the_api_are_entered_with_their_outcome(served: Site) -> None:
    with served.command() as alice:
        assert alice.put("/devices/pi-1/tags/kitchen").status_code == 200
        assert alice.post("/jobs/reviews/stop").status_code == 200
        assert alice.post("/jobs/reviews/stop").status_code == 409
        assert alice.post("/jobs/none/pause").status_code == 404
        assert alice.post("/jobs", json={"job": {"name": "bad\x1b[31m"}, "bundle": "here"}).status_code == 422
        assert alice.post("/devices/pi-1/approve").status_code == 422
        order = {"kind": "bundle", "source": "/none", "groups": ["0"]}
        assert alice.post("/rollouts", json=order).status_code == 422
        assert alice.delete("/jobs/reviews").status_code == 200
    found = entries(served.ledger)
    assert [entry[:4] for entry in found] == [
        ("alice", "token", action, subject)
        for action, subject in (
            ("tag", "pi-1"),
            ("stop", "reviews"),
            ("stop", "reviews"),
            ("pause", "none"),
            ("submit", "bad\\x1b[31m"),
            ("approve", "pi-1"),
            ("rollout start", "/none"),
            ("delete", "reviews"),
        )
    ]
    outcomes = [entry[4] for entry in found]
    assert [outcome == "done" for outcome in outcomes] == [True, True, False, False, False, False, False, True]
    assert outcomes[2] == "refused: cannot stop job reviews: it is stopped"
    assert {entry.address for entry in audit_of(served.ledger)} == {"127.0.0.1"}


def test_reads_and_strangers_leave_no_entry(served: Site) -> None:
    with served.command("nobody-has-this-token") as stranger:
        assert stranger.put("/devices/pi-1/tags/kitchen").status_code == 401
    with served.command() as alice:
        assert alice.get("/jobs").status_code == 200
        assert alice.get("/audit").json() == {"entries": [], "next_before": None}


def test_the_api_pages_through_the_audit(served: Site) -> None:
    with served.command() as alice:
        for number in range(5):
            alice.put(f"/devices/pi-1/tags/tag-{number}")
        first = alice.get("/audit", params={"most": 3}).json()
        rest = alice.get("/audit", params={"most": 3, "before": first["next_before"]}).json()
        assert [one["detail"] for one in first["entries"] + rest["entries"]] == [f"tag-{n}" for n in (4, 3, 2, 1, 0)]
        assert rest["next_before"] is None
        assert alice.get("/audit", params={"since": "2999-01-01"}).json()["entries"] == []
        assert len(alice.get("/audit", params={"since": "2000-01-01 00:00:00"}).json()["entries"]) == 5
        for bad in ({"since": "yesterday"}, {"most": 0}, {"most": 1001}, {"before": 0}):
            assert alice.get("/audit", params=bad).status_code in (400, 422)
        page = audit_page(served.ledger, 2)
        assert msgspec.to_builtins(msgspec.convert(page, AuditPage)) == page
        assert alice.get("/audit", params={"most": 2}).json() == page


def test_the_entry_is_there_before_the_change_and_unknown_until_it_is_done(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        number = ledger.audit_begun(Asker("alice", "token", "192.0.2.7"), "stop", "reviews")
        (entry,) = audit_of(ledger)
        assert (entry.id, entry.outcome) == (number, None)
        ledger.audit_ended(number, "done")
        assert audit_of(ledger)[0].outcome == "done"


def test_the_audit_has_a_bounded_size_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ENTRIES_KEPT == 100_000
    monkeypatch.setattr("server.storage.audit_writes.ENTRIES_KEPT", 3)
    with closing(Ledger(tmp_path / LEDGER_FILE, durable=False)) as ledger:
        for number in range(5):
            ledger.audit_begun(Asker("alice", "token"), "tag", f"pi-{number}")
        assert [entry.subject for entry in audit_of(ledger)] == ["pi-4", "pi-3", "pi-2"]
        assert newest_entry(ledger) == 5


def test_long_and_unprintable_texts_are_kept_short_and_in_one_line(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / LEDGER_FILE)) as ledger:
        ledger.audit_begun(Asker("alice", "token"), "tag", "a\nb\x1b[2J\u202e\ud800", "x" * 100_000)
        (entry,) = audit_of(ledger)
        assert entry.subject == "a\\nb\\x1b[2J\\u202e\\ud800"
        assert len(entry.detail) == 500


@pytest.mark.sqlite("a backup copies the file")
def test_the_command_reads_the_ledger_and_a_backup_keeps_the_audit(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with closing(Ledger(state / LEDGER_FILE)) as ledger:
        for number in range(3):
            ledger.audit_ended(ledger.audit_begun(Asker("alice", "browser", "::1"), "tag", f"pi-{number}"), "done")
    create_backup(state, tmp_path / "covey.tar")
    restore_backup(tmp_path / "covey.tar", tmp_path / "restored")
    for folder in (state, tmp_path / "restored"):
        said = audit_command(folder, "--since", "1h")
        assert [entry["subject"] for entry in said["entries"]] == ["pi-0", "pi-1", "pi-2"]
        assert [entry["subject"] for entry in audit_command(folder, "-n", "1")["entries"]] == ["pi-2"]
    assert audit_command(state, "--since", "2999-01-01")["entries"] == []


def audit_command(state: Path, *words: str) -> dict[str, Any]:
    out = io.StringIO()
    with redirect_stdout(out):
        assert main(["server", "audit", "--state-dir", str(state), "--format", "json", *words]) == 0
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@pytest.mark.parametrize("words", [["--since", "x"], ["--since", "2026-99-99"], ["-n", "0"]])
def test_what_the_command_cannot_use_is_refused(tmp_path: Path, words: list[str]) -> None:
    Ledger(tmp_path / LEDGER_FILE).close()
    assert main(["server", "audit", "--state-dir", str(tmp_path), *words]) == ConfigError.exit_code


def test_a_change_of_the_dashboard_is_entered_too(served: Site) -> None:
    with served.signed_in() as alice:
        assert confirm(alice, "tag", "pi-1", value="kitchen").status_code == 303
        page = alice.get("/ui/do/stop", params={"target": "reviews"})
        alice.post("/ui/do/stop", data=form_of(page, "reviews"))
    assert entries(served.ledger) == [
        ("alice", "browser", "tag", "pi-1", "done"),
        ("alice", "browser", "stop", "reviews", "done"),
    ]
    actions = [entry.action for entry in audit_of(served.ledger)]
    assert actions == ["stop", "tag", "sign in"]
