"""``python -m tests.hil.board``: make the emulated board, and boot it with its serial line on this terminal."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.hil.board.machine import HOST, Hardware, Machine, overlay
from tests.hil.board.parts import CACHE, make_parts
from tests.hil.board.tools import TO_BOOT, NotHere, require


def main() -> int:
    """Return 0, or 3 where this machine lacks something, which is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.hil.board", description=__doc__)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where its parts are kept (%(default)s)")
    parser.add_argument("--boot", action="store_true", help="boot it on this terminal; Ctrl-A x ends it")
    parser.add_argument("--forward", type=int, action="append", default=[], metavar="PORT", help="a port it may reach")
    parser.add_argument("--clock", help="what its clock says, as 2020-01-01T00:00:00 (the time)")
    args = parser.parse_args()
    try:
        require(TO_BOOT)
        began = time.monotonic()
        parts = make_parts(args.cache)
        _say(f"the board's disk is {parts.disk} ({time.monotonic() - began:.0f} s)")
        if args.boot:
            _boot(parts.kernel, parts.initramfs, parts.disk, args)
    except NotHere as error:
        _say(str(error))
        return 3
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _boot(kernel: Path, initramfs: Path, disk: Path, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=args.cache) as work:
        folder = Path(work)
        ports = args.forward or "(none: --forward PORT)"
        _say(f"it reaches ports {ports} of this machine at {HOST}; Ctrl-A x ends it")
        hardware = Hardware(
            kernel, initramfs, overlay(disk, folder / "disk.qcow2"), forwards=args.forward, clock=args.clock
        )
        machine = Machine(hardware, folder)
        machine.start(stdio=True)
        try:
            while machine.is_on:
                time.sleep(0.2)
        finally:
            machine.stop()


if __name__ == "__main__":
    sys.exit(main())
