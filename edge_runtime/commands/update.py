"""``covey-edge update``: install another version of Covey beside the one that runs, switch to it, and go back."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import __version__, output
from edge_runtime.errors import UpdateError

if TYPE_CHECKING:
    import argparse

    from edge_runtime.update.install import Supply
    from edge_runtime.update.state import State

_EXAMPLES = {
    "setup": "covey-edge update setup covey-0.2.0-py3-none-linux_aarch64.whl --root /var/lib/covey/update "
    "--config /etc/covey/edge.toml",
    "install": "covey-edge update install covey-0.3.0-py3-none-linux_aarch64.whl --sha256 9f86d08… "
    "--wheelhouse /media/usb/wheels",
    "status": "covey-edge update status --format json",
    "rollback": "covey-edge update rollback",
}


def add_update_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``update setup``, ``install``, ``status``, ``rollback``, ``check`` and ``reach``."""
    update = commands.add_parser("update", help="install another version of Covey, and go back")
    kinds = update.add_subparsers(required=True, metavar="COMMAND")
    setup = kinds.add_parser("setup", help="two slots and the launcher", description=_setup.__doc__)
    setup.add_argument("wheel", type=Path, nargs="?", metavar="WHEEL", help="the first version; without: the launcher")
    install = kinds.add_parser("install", help="install a wheel and switch to it", description=_install.__doc__)
    install.add_argument("wheel", type=Path, metavar="WHEEL")
    install.add_argument("--no-switch", action="store_true", help="install and check it only")
    for parser in (setup, install):
        parser.add_argument("--sha256", metavar="HEX", help="refuse a wheel with another hash")
        parser.add_argument("--wheelhouse", type=Path, metavar="DIR", help="a folder of wheels of what is missing")
        parser.add_argument("--index-url", metavar="URL", help="fetch what is missing there (default: no network)")
    status = kinds.add_parser("status", help="versions, trial, last outcome", description=_status.__doc__)
    rollback = kinds.add_parser("rollback", help="back to the version before", description=_rollback.__doc__)
    check = kinds.add_parser("check", help="whether this version works here", description=_check.__doc__)
    reach = kinds.add_parser("reach", help="whether this version reaches the broker", description=_reach.__doc__)
    for name, parser, run in (
        ("setup", setup, _setup),
        ("install", install, _install),
        ("status", status, _status),
        ("rollback", rollback, _rollback),
        ("check", check, _check),
        ("reach", reach, _reach),
    ):
        if name in _EXAMPLES:
            parser.epilog = f"Example: {_EXAMPLES[name]}"
            parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the slots (default: this one's)")
        if name in ("setup", "install", "check", "reach"):
            parser.add_argument("--config", type=Path, required=name == "reach", metavar="edge.toml")
        output.add_format(parser)
        parser.set_defaults(run=run)


def _root(args: argparse.Namespace) -> Path:
    """Return the folder of slots: the flag's, that of the launcher, or the one that this process runs from."""
    from edge_runtime.update.requests import SETUP, update_root
    from edge_runtime.update.slots import slot_path
    from edge_runtime.update.state import SLOTS

    given: Path | None = args.root or update_root()
    if given is not None:
        return given.absolute()
    here = Path(sys.prefix).resolve()  # it may be the link to the slot that runs
    if here in [slot_path(here.parent, slot) for slot in SLOTS]:
        return here.parent
    raise UpdateError("this covey-edge runs from no slot, so no update could be taken back", f"{SETUP}; or name --root")


def _supply(args: argparse.Namespace) -> Supply:
    from edge_runtime.update.install import Supply

    wheelhouse: Path | None = args.wheelhouse
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise UpdateError(f"{wheelhouse} is no folder", "name a folder of wheels: pip download covey makes one")
    return Supply(wheelhouse and wheelhouse.absolute(), args.index_url)


def _setup(args: argparse.Namespace) -> int:
    """Make the two slots and the launcher, so that Covey can be updated and go back by itself.

    The packages that Covey needs are taken over from the environment of this command. Without a wheel, the launcher of
    a folder that is set up already is renewed.
    """
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.update.launcher_file import LAUNCHER_FILE
    from edge_runtime.update.setup import First, renew_launcher, set_up

    root = _root(args)
    start = f"{getattr(sys, '_base_executable', sys.executable)} {root / LAUNCHER_FILE}"
    if args.wheel is None:
        changed = renew_launcher(root)
        text = "the launcher is renewed: restart the service" if changed else "the launcher is current"
        output.emit(args, {"root": str(root), "changed": changed}, text)
        return 0
    also = (read_edge_config(args.config).engine,) if args.config else ()
    found = set_up(root, First(args.wheel, args.sha256, args.config, also), _supply(args))
    text = f"Covey {found.version} is in {root}; start it with\n  {start} --config {args.config or 'edge.toml'}"
    output.emit(args, {"root": str(root), **asdict(found), "start": start}, text)
    return 0


def _install(args: argparse.Namespace) -> int:
    """Install a wheel beside the version that runs, check it on this device, and ask the launcher to switch to it.

    The launcher watches the new version, and goes back if it does not come up.
    """
    from edge_runtime.update.install import install_wheel
    from edge_runtime.update.requests import launcher_runs, request_switch

    root = _root(args)
    found = install_wheel(args.wheel, args.sha256, root, config=args.config, supply=_supply(args))
    result: dict[str, Any] = {"root": str(root), **asdict(found), "request": None}
    if args.no_switch:
        output.emit(args, result, f"Covey {found.version} is installed; the version that runs stays")
        return 0
    result["request"] = request_switch(root, found)
    when = "the launcher switches now" if launcher_runs(root) else "the launcher switches when it is started"
    output.emit(args, result, f"Covey {found.version} is installed; {when}: covey-edge update status")
    return 0


def _status(args: argparse.Namespace) -> int:
    """Say which versions are installed, which one runs, what is on trial, and how the last switch ended."""
    from edge_runtime.update.requests import known_state, launcher_runs, read_request
    from edge_runtime.update.rules import previous_version
    from edge_runtime.update.slots import installed

    root = _root(args)
    state, slots, request = known_state(root), installed(root), read_request(root)
    before = previous_version(state, slots) if state.trial is None else slots.get(state.trial.back)
    waits = request is not None and request.id != state.request
    runs = launcher_runs(root)
    result = {
        "root": str(root),
        "current": asdict(slots[state.current]) if state.current in slots else None,
        "previous": None if before is None else asdict(before),
        "on_trial": state.trial is not None,
        "attempts": 0 if state.trial is None else state.trial.attempts,
        "request_waits": waits,
        "launcher_runs": runs,
        "outcome": None if state.outcome is None else asdict(state.outcome),
    }
    output.emit(args, result, "\n".join(_lines(state, result)))
    return 0


def _lines(state: State, result: dict[str, Any]) -> list[str]:
    current, previous, outcome = result["current"], result["previous"], state.outcome
    trial = f", on trial (attempt {result['attempts']})" if result["on_trial"] else ""
    lines = [
        f"current    {'its slot is damaged' if current is None else current['version']}{trial}",
        f"previous   {'none' if previous is None else previous['version']}",
        f"launcher   {'runs' if result['launcher_runs'] else 'does not run'}",
    ]
    if result["request_waits"]:
        lines.append("request    waits for the launcher")
    if outcome is not None:
        why = f": {outcome.reason}" if outcome.reason else ""
        lines.append(f"last       {outcome.kind} {outcome.from_version} → {outcome.to_version}, {outcome.result}{why}")
    return lines


def _rollback(args: argparse.Namespace) -> int:
    """Go back to the version before. It is on trial like any other: if it does not come up, this one returns."""
    from edge_runtime.update.requests import launcher_runs, request_rollback

    root = _root(args)
    request = request_rollback(root)
    when = "the launcher goes back now" if launcher_runs(root) else "the launcher goes back when it is started"
    output.emit(args, {"root": str(root), "request": request}, f"{when}: covey-edge update status")
    return 0


def _check(args: argparse.Namespace) -> int:
    """Check that this version of Covey works on this device, without changing anything.

    It loads the compiled libraries and, with --config, reads the state directory and runs the current bundle's golden
    vectors. An installation runs it in the new slot.
    """
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.agent.self_check import check_takeover, load_everything
    from edge_runtime.commands.doctor_natives import native_findings

    config = read_edge_config(args.config) if args.config else None
    for finding in native_findings("onnxruntime" if config is None else config.engine, build=False):
        if finding.status == "problem":
            raise UpdateError(f"{finding.check}: {finding.found}", finding.advice)
    modules = load_everything()
    bundle, parity = (None, None) if config is None else check_takeover(config)
    result = {
        "covey_version": __version__,
        "prefix": sys.prefix,
        "modules": modules,
        "bundle_sha256": bundle,
        "parity_loss": None if parity is None else parity.loss,
    }
    tried = "no bundle was there to try" if parity is None else f"bundle {str(bundle)[:12]} gives PyTorch's values"
    output.emit(args, result, f"Covey {__version__} works here: its libraries load, {tried}")
    return 0


def _reach(args: argparse.Namespace) -> int:
    """Log in to the broker as the device does, and leave. Exit code 7: it cannot be reached."""
    from edge_runtime.agent.broker_access import device_access
    from edge_runtime.agent.config import read_edge_config

    config = read_edge_config(args.config)
    for cause in device_access(config).causes:
        if cause.kind != "acl":
            raise cause.error()
    output.emit(args, {"reachable": True}, "the broker can be reached")
    return 0
