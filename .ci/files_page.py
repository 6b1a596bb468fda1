"""Writes docs/files.md from the first sentences of modules and rooms, so that the page cannot go stale."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILES_PAGE = "docs/files.md"
TOPS = {
    "edge_runtime": "the device, and what both sides share; never imports torch",
    "server": "the coordinating side; never imports export or torch",
    "export": "the only side with torch, transformers and peft",
    "benchmarks": "what is measured, run as `python -m benchmarks.…`",
    "tests": "one folder for each side; `support/` holds their tools",
}
HEAD = """# Files

The first part says where a change goes; the second lists every file with its first sentence. `make files` writes this
page from `.ci/files_page.py` and the sources, and `make lint` fails where it is stale.

## Where a change goes

| the change | where it goes | and then |
|---|---|---|
"""
# The change, the files or folders where it goes, and what else it takes.
CHANGES = (
    (
        "support another board",
        ("edge_runtime/device/board.py", "device_profiles/"),
        "sensors of a new kind go to `power.py`; `device_profiles/` holds its facts, `tests/edge/boards/` its files",
    ),
    (
        "support another architecture",
        ("export/source/architectures.py",),
        "four facts; `tests/export/test_architectures.py` gets a tiny model of it",
    ),
    (
        "add a forward-only method",
        ("server/job/methods.py", "edge_runtime/protocol/step_rule.py"),
        "a method is a setting of the rule's switches; only a new switch touches `edge_runtime/forward_only/`",
    ),
    (
        "add an arm to the bandit",
        ("server/bandit/arms.py",),
        "`server/planning/` prices arms for a device and turns the chosen one into an assignment",
    ),
    (
        "add a policy to the bandit",
        ("server/bandit/policies.py",),
        "its name joins `Policy` in `options.py`; `python -m benchmarks.arm_choice.policies` compares it",
    ),
    (
        "add or change a message",
        ("edge_runtime/protocol/",),
        "a golden encoding in `tests/edge/test_protocol.py`; `make files` lists its fields in `docs/protocol.md`",
    ),
    (
        "support another runtime",
        ("edge_runtime/engines/", "export/graphs/"),
        "`engines/choose.py` knows runtimes by name; parity tests decide",
    ),
    (
        "support another task",
        ("export/model/tasks.py", "edge_runtime/data/"),
        "rows are encoded in `edge_runtime/data/rows.py`, predicted in `edge_runtime/engines/predict.py`",
    ),
    (
        "read another kind of data file",
        ("edge_runtime/data/sources.py", "edge_runtime/data/records.py"),
        "`covey-edge data check` (`edge_runtime/commands/data.py`) shows it to users",
    ),
    (
        "add a field to job.toml",
        ("server/job/job.py",),
        "`server/job/fitted.py` checks it against the bundle; `docs/configuration.md` tells users",
    ),
    (
        "add a field to edge.toml",
        ("edge_runtime/agent/config.py",),
        "`docs/configuration.md` tells users",
    ),
    (
        "ask the ledger something new",
        ("server/storage/queries.py",),
        "what it returns is a record in `server/storage/records.py`; no other room writes SQL",
    ),
    (
        "add a command",
        ("edge_runtime/commands/", "server/commands/", "export/commands/"),
        "one file for each command; `cli.py` of that side adds it",
    ),
    (
        "change when a device may train",
        ("edge_runtime/device/eligibility.py", "edge_runtime/device/gate.py"),
        "the rules are the owner's: `[eligibility]` in edge.toml",
    ),
    (
        "measure something new on a board",
        ("edge_runtime/profiling/", "edge_runtime/protocol/profile.py"),
        "`device_profiles/profile.schema.json` follows the struct",
    ),
    (
        "change how reports are merged",
        ("server/rounds/merge.py",),
        "pure; `docs/hybrid.md` explains it, `tests/server/test_merge.py` holds it",
    ),
    (
        "call the core from an app",
        ("edge_runtime/native/covey.h",),
        "`edge_runtime/native/core/` mirrors the Python rooms; `docs/mobile.md` shows the calls",
    ),
)


def missing_places(root: Path) -> Iterator[str]:
    """Yield files and folders of CHANGES that do not exist."""
    for change, places, _ in CHANGES:
        for place in places:
            if not (root / place).exists():
                yield f"{FILES_PAGE}: '{change}' goes to {place}, which does not exist"


def files_page(root: Path) -> str:
    """Return the page for the tree at ``root``."""
    rows = (
        f"| {change} | {', '.join(f'`{place}`' for place in places)} | {note} |" for change, places, note in CHANGES
    )
    parts = [HEAD + "\n".join(rows) + "\n"]
    for top, what in TOPS.items():
        parts.append(f"## {top}/\n\n{what[0].upper()}{what[1:]}.\n")
        folders = [root / top, *sorted(path for path in (root / top).rglob("*") if path.is_dir())]
        for folder in folders:
            rows = [(path.name, summary(path)) for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
            if not rows:
                continue
            if folder != root / top:
                room = folder / "__init__.py"
                said = f"\n{summary(room)}\n" if room.exists() else ""
                parts.append(f"### {folder.relative_to(root).as_posix()}/\n{said}")
            parts.append("| file | |\n|---|---|\n" + "\n".join(f"| `{name}` | {text} |" for name, text in rows) + "\n")
    return "\n".join(parts)


def summary(path: Path) -> str:
    """Return the first paragraph of a module's docstring as one line that fits into a table."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.sub(r"``(.+?)``", r"`\1`", first).replace("|", "\\|")
