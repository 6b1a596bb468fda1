"""Checks the house: sizes, circles of imports, floors, what each room says of itself, and the pages of the docs.

    python .ci/house.py            check; every fault is one line, and the exit code is 1
    python .ci/house.py --write    write docs/files.md and a part of docs/protocol.md first
    python .ci/house.py --root DIR check another tree (tests do)

import-linter holds the order of the rooms (pyproject.toml). This script holds what import-linter does not look at: a
room's docstring names exactly the rooms that it imports from, files have no circle even under TYPE_CHECKING, and no
file, function or parameter list grows beyond its limit without a stated reason (``# long: …`` or ``# wide: …`` in the
line of the ``def`` or above it).
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
from files_page import FILES_PAGE, files_page, missing_places
from pages import faults_of_pages
from protocol_page import PROTOCOL_PAGE, protocol_page, stale_page

SIDES = ("edge_runtime", "server", "export")
PACKAGES = (*SIDES, "benchmarks")
CHECKED = (*PACKAGES, "tests", ".ci")
MOST_LINES = 400
MOST_FUNCTION_LINES = 60
MOST_PARAMETERS = 8
MOST_FLOORS = 11  # the server: commands, simulation, serving, api, queue, rounds … down to errors

Sources = dict[str, ast.Module]


def main() -> int:
    """Check the tree and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/files.md and the fields in docs/protocol.md")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        (args.root / FILES_PAGE).write_text(files_page(args.root))
        protocol = args.root / PROTOCOL_PAGE
        protocol.write_text(protocol_page(protocol.read_text()))
    faults = list(check(args.root))
    for fault in faults:
        print(fault)
    if not faults:
        print("the house is in order")
    return 1 if faults else 0


def check(root: Path) -> Iterator[str]:
    """Yield every fault of a tree, one line each."""
    paths = [path for top in CHECKED for path in sorted((root / top).rglob("*.py")) if "native" not in path.parts[:-1]]
    for top in PACKAGES:
        if not any(path.is_relative_to(root / top) for path in paths):
            yield f"{top}: no Python file was found, so nothing of it was checked"
    for path in paths:
        yield from sizes(path.relative_to(root).as_posix(), path.read_text())
    sources = {
        module_name(path.relative_to(root)): ast.parse(path.read_text())
        for path in paths
        if path.relative_to(root).parts[0] in PACKAGES
    }
    graph = {module: imports(tree, sources) for module, tree in sources.items()}
    for circle in circles(graph):
        yield f"circle of imports: {' → '.join(circle)}"
    for module, tree in sources.items():
        yield from private_imports(module, tree)
    for side in SIDES:
        rooms = room_graph(side, graph)
        floors = max((floor_of(room, rooms) for room in rooms), default=0)
        if floors > MOST_FLOORS:
            yield f"{side}: {floors} floors, at most {MOST_FLOORS}"
        yield from room_docstrings(root, side, graph)
    yield from missing_places(root)
    yield from faults_of_pages(root)
    yield from stale_page(root)
    page = root / FILES_PAGE
    if not page.exists() or page.read_text() != files_page(root):
        yield f"{FILES_PAGE} is stale: run python .ci/house.py --write"


def sizes(name: str, text: str) -> Iterator[str]:
    """Yield files, functions and parameter lists that are over their limit and state no reason."""
    lines = text.split("\n")
    if len(lines) - 1 > MOST_LINES:
        yield f"{name}: {len(lines) - 1} lines, at most {MOST_LINES}"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        reasons = "\n".join(lines[max(0, node.lineno - 2) : node.body[0].lineno - 1])
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > MOST_FUNCTION_LINES and not re.search(r"# long: \w", reasons):
            yield f"{name}:{node.lineno}: {node.name} has {length} lines, at most {MOST_FUNCTION_LINES}"
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = [argument for argument in named if argument.arg not in {"self", "cls"}]
        if len(parameters) > MOST_PARAMETERS and not re.search(r"# wide: \w", reasons):
            yield f"{name}:{node.lineno}: {node.name} has {len(parameters)} parameters, at most {MOST_PARAMETERS}"


def module_name(path: Path) -> str:
    """Return the dotted name of a file, relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.Module, sources: Mapping[str, ast.Module]) -> set[str]:
    """Return the modules of this repository that a module imports, anywhere in it and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    known = {name for name in found if name in sources}
    return {name for name in known if not any(other.startswith(f"{name}.") for other in known)}


def circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield one circle for each strongly connected part of a graph (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                yield sorted(part)

    for name in sorted(graph):
        if name not in index:
            yield from visit(name)


def private_imports(module: str, tree: ast.Module) -> Iterator[str]:
    """Yield names with a leading underscore that are imported from another file of this repository."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield f"{module} imports the private {alias.name} of {node.module}"


def room_graph(side: str, graph: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """Return the arrows between the rooms of a side; a file at the side's root is a room of its own."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for module, others in graph.items():
        if module.startswith(f"{side}."):
            room = module.split(".")[1]
            inside = {other.split(".")[1] for other in others if other.startswith(f"{side}.")}
            rooms[room] |= inside - {room}
    return {room: {other for other in others if other in rooms} for room, others in rooms.items()}


def floor_of(room: str, rooms: Mapping[str, set[str]], above: tuple[str, ...] = ()) -> int:
    """Return on which floor a room is: 1 where it imports no other room."""
    return 1 + max((floor_of(other, rooms, (*above, room)) for other in rooms[room] if other not in above), default=0)


def room_docstrings(root: Path, side: str, graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Yield rooms whose ``__init__`` says wrongly or not at all what they import, or holds more than a docstring."""
    rooms = sorted((root / side).glob("*/__init__.py"))
    if not rooms:
        yield f"{side}: no room was found, so no docstring was checked"
    for path in rooms:
        name = path.relative_to(root).as_posix()
        tree, room = ast.parse(path.read_text()), f"{side}.{path.parent.name}"
        if len(tree.body) != 1:
            yield f"{name} holds more than a docstring: import names from where they are defined"
        said = re.search(r"May import: (.*?)\.\s+Must never come in: \w", ast.get_docstring(tree) or "", re.DOTALL)
        if not said:
            yield f"{name} does not say 'May import: …' and 'Must never come in: …'"
            continue
        own, _, shared = " ".join(said[1].split()).partition("; of edge_runtime: ")
        allowed = {f"{side}.{word}" for word in own.split(", ") if word != "nothing of its side"}
        allowed |= {f"edge_runtime.{word}" for word in shared.split(", ") if word}
        actual = {
            ".".join(other.split(".")[:2])
            for module, others in graph.items()
            if module == room or module.startswith(f"{room}.")
            for other in others
            if "." in other
        } - {room}
        for other in sorted(actual - allowed):
            yield f"{name} does not list {other}, which the room imports"
        for other in sorted(allowed - actual):
            yield f"{name} lists {other}, which the room does not import"


if __name__ == "__main__":
    raise SystemExit(main())
