"""Prints a command's result: text for people, one JSON object for programs; errors and progress go to stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import tempfile
import traceback
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import FaultError, as_covey_error, exit_codes

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

INTERRUPTED = 130
LOG_FORMAT = "COVEY_LOG_FORMAT"
LOG_FORMATS = ("text", "json")

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, clear the screen, change the direction of text, or have no encoding."""


class PrintableFormatter(logging.Formatter):
    """A formatter whose lines cannot act on a terminal: what a message quotes may be another machine's text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line with its control characters escaped; line breaks stay."""
        return printable(super().format(record))


class JsonFormatter(logging.Formatter):
    """A formatter whose lines are JSON objects: ``time`` (RFC 3339, UTC), ``level``, ``logger`` and ``message``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; ``exception`` has its traceback, ``details`` (extra) are added."""
        time = datetime.fromtimestamp(record.created, tz=timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "details", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def add_format(parser: argparse.ArgumentParser) -> None:
    """Give a command ``--format``, ``--verbose`` and ``--log-format``."""
    parser.add_argument("--format", choices=("text", "json"), default="text", help="text for people (default), or JSON")
    parser.add_argument("-v", "--verbose", action="store_true", help="more of the log, on stderr")
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help=f"lines of the log: text, or JSON objects for a collector of logs (default: ${LOG_FORMAT}, else text)",
    )


def emit(args: argparse.Namespace, result: Mapping[str, Any], text: str) -> None:
    """Print a command's result on stdout: ``result`` as one line of JSON, or ``text``."""
    print(json.dumps(result) if args.format == "json" else printable(text))


def printable(text: str) -> str:
    r"""Return a text with its control characters escaped (``\x1b``); line breaks and tabs stay."""
    return _UNPRINTABLE.sub(_escaped, text)


def one_line(text: str) -> str:
    r"""Return a text with all control characters escaped, line breaks and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a plain table; None is shown as ``-``."""
    cells = [list(columns)] + [["-" if value is None else one_line(str(value)) for value in row] for row in rows]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)


def start_log(*, verbose: bool, as_json: bool = False) -> None:
    """Send the log to stderr: warnings of libraries, and Covey's own lines from INFO (``verbose``: DEBUG) on."""
    handler = logging.StreamHandler(sys.stderr)
    lines = PrintableFormatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonFormatter() if as_json else lines)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    for package in ("edge_runtime", "server", "export"):
        logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)


def _log_format(args: argparse.Namespace, parser: argparse.ArgumentParser) -> str:
    """Return what ``--log-format`` or the environment asks for; ends the program where that is no format."""
    asked: str = getattr(args, "log_format", None) or os.environ.get(LOG_FORMAT) or "text"
    if asked not in LOG_FORMATS:
        parser.error(f"{LOG_FORMAT} is {printable(asked)!r}; it can be {' or '.join(LOG_FORMATS)}")
    return asked


def main(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, run the command that was chosen (``args.run``), and turn errors into exit codes."""
    parser.epilog = "Exit codes: " + ", ".join(f"{code} {subject}" for code, subject in exit_codes().items()) + "."
    args = parser.parse_args(argv)
    verbose = getattr(args, "verbose", False)
    as_json = _log_format(args, parser) == "json"
    start_log(verbose=verbose, as_json=as_json)
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as caught:  # noqa: BLE001 the outermost wall: every exception ends as a line and an exit code
        if isinstance(caught, BrokenPipeError) and _nobody_reads():
            return 0
        error = as_covey_error(caught)
        if isinstance(error, FaultError):
            error.hint = _save_fault(caught, verbose=verbose)
        if getattr(args, "format", "text") == "json":
            said = {"error": error.what, "hint": error.hint, "exit_code": error.exit_code}
            print(json.dumps({**said, **error.details}))
        if as_json:
            details = {"hint": error.hint, "exit_code": error.exit_code}
            logging.getLogger(__name__).error("%s", error.what, extra={"details": details})  # noqa: TRY400 it is expected
        else:
            print(f"{parser.prog}: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    return code


def _nobody_reads() -> bool:
    """Whether standard output is what has broken, as with ``| head``; what is left goes nowhere then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _save_fault(fault: Exception, *, verbose: bool) -> str:
    """Write a traceback to a file that only its owner can read; return the hint that names it.

    It goes to the log where no file can be written, and with ``verbose``.
    """
    text = "".join(traceback.format_exception(fault))
    if verbose:
        logging.getLogger(__name__).error("%s", text)
        return "please report it with the traceback above; it may quote your data, so read it first"
    try:
        handle, path = tempfile.mkstemp(prefix="covey-fault-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        logging.getLogger(__name__).warning("%s", text)
        return "please report it with the traceback above; it may quote your data, so read it first"
    return f"please report it with {path}, which has the traceback; it may quote your data, so read it first"
