"""Prints a command's result: text for people, one JSON object for programs; errors and progress go to stderr."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import CoveyError, exit_codes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

INTERRUPTED = 130


def add_format(parser: argparse.ArgumentParser) -> None:
    """Give a command ``--format`` and ``--verbose``."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text for people (default), or JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="more of the log, on stderr")


def emit(args: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    """Print a command's result on stdout: ``result`` as one line of JSON, or ``text``."""
    print(json.dumps(result) if args.format == "json" else text)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a plain table; None is shown as ``-``."""
    cells = [list(columns)] + [["-" if value is None else str(value) for value in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def main(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, run the command that was chosen (``args.run``), and turn errors into exit codes."""
    parser.epilog = "Exit codes: " + ", ".join(f"{code} {subject}" for code, subject in exit_codes().items()) + "."
    args = parser.parse_args(argv)
    verbose = getattr(args, "verbose", False)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    for package in ("edge_runtime", "server", "export"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
    try:
        code: int = args.run(args)
    except CoveyError as error:
        if getattr(args, "format", "text") == "json":
            print(json.dumps({"error": error.what, "hint": error.hint, "exit_code": error.exit_code}))
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return code
