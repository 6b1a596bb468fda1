"""``covey-edge version``: which version of the model this device uses, and back to the one before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output

if TYPE_CHECKING:
    import argparse

    from edge_runtime.store.versions import Version, Versions


def add_version_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``version show`` and ``version rollback``."""
    version = commands.add_parser("version", help="the model's version in use, and the one before")
    kinds = version.add_subparsers(required=True, metavar="COMMAND")
    for name, help_text, run in (
        ("show", "which version is in use", _show),
        ("rollback", "back to the version before", _rollback),
    ):
        parser = kinds.add_parser(
            name,
            help=help_text,
            description=run.__doc__,
            epilog=f"example: covey-edge version {name} --config edge.toml",
        )
        parser.add_argument("--config", type=Path, required=True, metavar="edge.toml")
        output.add_format(parser)
        parser.set_defaults(run=run)


def _show(args: argparse.Namespace) -> int:
    """Show the version that predict uses, the one before it, and what became of the last releases."""
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.store.store import Store
    from edge_runtime.store.versions import read_versions

    versions = read_versions(Store(Path(read_edge_config(args.config).state_dir)))
    output.emit(args, _values(versions), _text(versions))
    return 0


def _rollback(args: argparse.Namespace) -> int:
    """Use the version before the one in use. It works while covey-edge run is at work, and without a network.

    Done twice, it goes forward again: two versions are kept.
    """
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.store.store import Store
    from edge_runtime.store.versions import gone_back, read_versions, write_versions

    store = Store(Path(read_edge_config(args.config).state_dir))
    versions = gone_back(read_versions(store))
    write_versions(store, versions)
    output.emit(args, _values(versions), _text(versions))
    return 0


def _values(versions: Versions) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(versions)
    return {name: found[name] for name in ("current", "previous", "outcomes")}


def _text(versions: Versions) -> str:
    lines = [f"in use:  {_named(versions.current)}", f"before:  {_named(versions.previous)}"]
    for outcome in versions.outcomes.values():
        why = f": {outcome.reason}" if outcome.reason else ""
        lines.append(f"rollout {outcome.rollout} of a {outcome.kind}: {outcome.outcome}{why}")
    return "\n".join(lines)


def _named(version: Version | None) -> str:
    if version is None:
        return "what training has left"
    adapter = "its own adapter" if version.adapter_sha256 is None else f"adapter {version.adapter_sha256[:12]}"
    return f"bundle {version.bundle_sha256[:12]} with {adapter}, of rollout {version.rollout}"
