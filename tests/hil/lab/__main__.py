"""``python -m tests.hil.lab board.yaml off``, or ``on``: try a board's power before tests do."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> int:
    """Switch the power of an environment's board."""
    parser = argparse.ArgumentParser(prog="python -m tests.hil.lab", description=__doc__)
    parser.add_argument("environment", type=Path, help="the environment's file: docs/hil.md")
    parser.add_argument("what", choices=("off", "on"))
    args = parser.parse_args()
    from labgrid import Environment

    environment = Environment(str(args.environment))
    try:
        wires = environment.get_target("main").get_driver("Strategy", activate=False)
        if wires.is_emulated:
            parser.error("the emulated board has no power of its own to switch: make board")
        wires.target.activate(wires.power)
        if args.what == "off":
            wires.power_off()
        else:
            wires.power.on()
    finally:
        environment.cleanup()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
