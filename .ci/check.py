"""Checks one file in seconds: ruff, mypy, and the tests that import it, the most specific tests first.

    python .ci/check.py edge_runtime/seeds.py

After SECONDS no further test file is started, and the last line names those that were left out: ``make test`` runs all.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

SECONDS = 20.0
NOTHING_TO_RUN = 5  # every test of the file carries a marker such as slow
ROOT = Path(__file__).resolve().parents[1]
TYPED = ("edge_runtime", "server", "export", "benchmarks")
SIDES = {"edge_runtime": "edge", "server": "server", "export": "export", "benchmarks": "benchmarks"}


def main() -> int:
    """Run every check on the file and return 0 where all pass; the first argument is its path."""
    if len(sys.argv) != 2:
        print("usage: check.py FILE", file=sys.stderr)
        return 2
    path = Path(sys.argv[1]).resolve()
    if not path.is_file() or path.suffix != ".py" or not path.is_relative_to(ROOT):
        print(f"{sys.argv[1]} is not a Python file of this repository", file=sys.stderr)
        return 2
    file = path.relative_to(ROOT)
    commands = [["ruff", "check", str(file)], ["ruff", "format", "--check", str(file)]]
    if file.parts[0] in TYPED:
        commands.append(["mypy", str(file)])
    failed = [command for command in commands if not passes(command)]
    tests, started = tests_of(file), time.monotonic()
    if not tests:
        print(f"no test imports {file}: run make test")
    while tests and time.monotonic() - started < SECONDS:
        command = ["pytest", "-q", "-x", "--no-header", "--disable-warnings", tests.pop(0)]
        if not passes(command):
            failed.append(command)
    if tests:
        print("left out:", *tests)
    return 1 if failed else 0


def passes(command: list[str]) -> bool:
    """Run a module of this environment, shown as it is run; whether it ended with 0, or pytest found nothing to run."""
    print("$", " ".join(command), flush=True)
    code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False).returncode
    return code == 0 or (command[0] == "pytest" and code == NOTHING_TO_RUN)


def tests_of(file: Path) -> list[str]:
    """Return the test files for a change of a file, the most specific first.

    A test file is its own. For other files they are the tests of the same side that import the file or, where there
    are none, that import what imports it, and so on.
    """
    if file.parts[0] == "tests":
        return [str(file)] if file.name.startswith("test_") else []
    tests = {
        str(test.relative_to(ROOT)): imported(ast.parse(test.read_text()))
        for test in (ROOT / "tests" / SIDES.get(file.parts[0], "")).glob("test_*.py")
    }
    sources = {
        dotted(path.relative_to(ROOT)): imported(ast.parse(path.read_text()))
        for path in (ROOT / file.parts[0]).rglob("*.py")
    }
    near, seen = {dotted(file)}, set[str]()
    while near:
        found = [test for test, names in tests.items() if names & near]
        if found:
            return sorted(found, key=lambda test: (len(tests[test] & sources.keys()), test))
        seen |= near
        near = {module for module, names in sources.items() if names & near} - seen
    return []


def dotted(file: Path) -> str:
    """Return a file's module name."""
    return ".".join(file.with_suffix("").parts)


def imported(tree: ast.Module) -> set[str]:
    """Return the modules that a file imports, also where a package's module is imported by name."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


if __name__ == "__main__":
    raise SystemExit(main())
