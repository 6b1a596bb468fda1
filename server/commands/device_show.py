"""``covey device show``: all that the server knows of one device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, look

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands
    from server.storage.ledger import Ledger


def add_device_show(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``device show``."""
    show = commands.add_parser("show", help="all that is known of a device", description=_show.__doc__)
    show.add_argument("device", help="name of the device")
    add_reaching(show)
    output.add_format(show)
    show.set_defaults(run=needs_server(_show))


def _show(args: argparse.Namespace) -> int:
    """Show a device as the dashboard's page does; without a running server, from the ledger.

    covey device show pi-kitchen: state and why, board, memory, temperature, engine, arm, tags, accuracy on held-out
    rows, its last 20 rounds (200 with --format json), certificates, releases, refused messages and profile.
    """
    import msgspec

    from edge_runtime.protocol.profile import Profile
    from server.views.device import device_text

    shown = look(args, f"/devices/{args.device}", lambda ledger: _of_ledger(ledger, args.device))
    profile = None if shown["profile"] is None else msgspec.convert(shown["profile"], Profile)
    output.emit(args, shown, device_text({**shown, "profile": profile}))
    return 0


def _of_ledger(ledger: Ledger, device: str) -> dict[str, Any]:
    """Return what a ledger has of a device, as the API answers it.

    Raises:
        ConfigError: it has no such device, or one in several fleets.
    """
    import msgspec

    from server.storage.registry_queries import find_device, fleets_of
    from server.views.device import device_shown

    fleets = [fleet for fleet in fleets_of(ledger) if find_device(ledger, fleet, device) is not None]
    if len(fleets) != 1:
        found = f"in several fleets: {', '.join(fleets)}" if fleets else "in no fleet"
        hint = "start the server of the one you mean: covey serve --fleet NAME" if fleets else "see: covey device list"
        raise ConfigError(f"the ledger has the device {device} {found}", hint)
    shown: dict[str, Any] = msgspec.to_builtins(device_shown(ledger, fleets[0], device))
    return shown
