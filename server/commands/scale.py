"""``covey scale``: what a fleet of a size needs of the server, from measured costs."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from edge_runtime import output
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from server.advice.scale import Costs, Fleet, Needs
    from server.commands.shared_options import Commands

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_MEGA = 1e6
_UNKNOWN = "not known"
_ENDS = {
    "restart": "then it takes a minute of processor after a restart until it knows them",
    "rounds": "then its processor is too busy",
}


def add_scale_command(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``covey scale``."""
    parser = commands.add_parser("scale", help="what a fleet of a size needs", description=_scale.__doc__)
    parser.add_argument("--devices", type=int, required=True, metavar="N", help="devices of the fleet")
    parser.add_argument("--cohort", type=int, default=1000, help="reports of a round (default: %(default)s)")
    parser.add_argument("--round-every", default="1h", metavar="TIME", help="90s, 10m, 1h or 1d (default: %(default)s)")
    parser.add_argument("--adapter-mb", type=float, default=2.0, help="size of the adapter (default: %(default)s)")
    parser.add_argument("--online", type=float, default=1.0, help="share online at a time (default: %(default)s)")
    parser.add_argument(
        "--joins-per-day", type=float, default=1.0, help="how often a device comes online (default: %(default)s)"
    )
    parser.add_argument("--over-selection", type=float, default=1.2, help="as in the job (default: %(default)s)")
    parser.add_argument("--directions", type=int, help="steps × scalars of a report (default: as measured)")
    parser.add_argument("--deltas", action="store_true", help="devices backpropagate, and send deltas")
    parser.add_argument("--broker-sessions", type=int, metavar="N", help="connections that one of your brokers holds")
    output.add_format(parser)
    parser.set_defaults(run=_scale)


def _scale(args: argparse.Namespace) -> int:
    """Say what a fleet of a size needs of one server: processor, messages, bytes, ledger; and where one server ends.

    The figures are computed from costs that were measured on one machine with devices that answer at once; the output
    says which machine, and what is not in them. Nothing is run or sent.

    covey scale --devices 100000 --round-every 10m
    covey scale --devices 1000000 --online 0.35 --cohort 2000 --round-every 1h --adapter-mb 2
    covey scale --devices 10000 --cohort 500 --round-every 10m --deltas --broker-sessions 5000
    """
    import msgspec

    from server.advice.scale import COSTS_FILE, Costs, needs

    costs = msgspec.json.decode(COSTS_FILE.read_bytes(), type=Costs)
    fleet = _fleet(args)
    found = needs(costs, fleet)
    missing = _missing(fleet)
    value = {
        **msgspec.to_builtins(found),
        "measured_on": costs.machine,
        "measured_at_commit": costs.commit,
        "not_in_it": missing,
    }
    output.emit(args, value, _text(costs, fleet, found, missing))
    return 0


def _fleet(args: argparse.Namespace) -> Fleet:
    from server.advice.scale import Fleet

    for name in ("devices", "cohort", "directions", "broker_sessions"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1", "see covey scale --help")
    if not 0 < args.online <= 1:
        raise ConfigError("--online is a share: above 0, at most 1", "give 0.35 where a third is online at a time")
    if not 0 <= args.joins_per_day < math.inf or not 0 < args.adapter_mb < math.inf:
        raise ConfigError("--joins-per-day must not be negative, and --adapter-mb must be above 0", "leave them out")
    if not 1 <= args.over_selection < math.inf:
        raise ConfigError("--over-selection must be at least 1", "leave it out")
    return Fleet(
        devices=args.devices,
        online=args.online,
        joins_per_day=args.joins_per_day,
        cohort=args.cohort,
        over_selection=args.over_selection,
        round_every_s=_seconds(args.round_every),
        adapter_bytes=args.adapter_mb * _MEGA,
        directions=args.directions,
        sends_deltas=args.deltas,
        broker_sessions=args.broker_sessions,
    )


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])", text)
    if found is None or not float(found[1]) > 0:
        raise ConfigError(
            f"--round-every {text!r} is not a time", "give a number above 0 with s, m, h or d, such as 10m"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def _missing(fleet: Fleet) -> list[str]:
    """Return what the figures do not include."""
    found = [
        "the server's MQTT client, TLS and signatures: make bench-signing and make bench-load measure them",
        "the brokers' processors and memory: measure yours with the number of connections that you need",
        "headers of TCP, TLS, MQTT and HTTP, and messages and downloads that are repeated",
        "evaluation on held-out rows, which depends on the model",
        "how rounds and announcements bunch: all figures a second are averages",
    ]
    if fleet.sends_deltas:
        found.append("checking and merging of deltas, which is not measured yet")
    return found


def _text(costs: Costs, fleet: Fleet, found: Needs, missing: list[str]) -> str:
    rows = [
        ("processor for a round", f"{_number(found.round_s)} ± {_number(found.round_s_error)} s", "its shortest time"),
        ("share of one core", f"{_number(found.cores)} ± {_number(found.cores_error)}", _verdict(found)),
        ("messages", f"{_number(found.messages_per_s)}/s", "rounds and presence"),
        ("bytes up", f"{_bytes(found.up_bytes_per_s)}/s", "reports" + (" and deltas" if fleet.sends_deltas else "")),
        (
            "bytes down",
            f"{_bytes(found.down_bytes_per_s)}/s",
            "plans, logs and adapters; a cache can carry the last two",
        ),
        ("before a round", _bytes(found.fetched_bytes), f"a device has missed {found.missed_rounds:,.0f} rounds"),
        ("end of the job", _bytes(found.final_bytes), "the last adapter to all that are online"),
        ("after a restart", f"{_number(found.presence_s)} s", "of processor until all that are online are known again"),
        ("ledger a day", _bytes(found.ledger_bytes_per_day), f"{found.ledger_rows_per_day:,.0f} rows"),
        ("ledger for devices", _bytes(found.ledger_device_bytes), "once"),
        (
            "brokers",
            _UNKNOWN if found.brokers is None else str(found.brokers),
            "for the connections; --broker-sessions",
        ),
        ("server's memory", _bytes(found.memory_bytes), "for what it knows of the devices, beside itself"),
        ("most devices", _most(found.most_devices), f"of one server; {_ENDS[found.devices_end_with]}"),
        ("largest cohort", _most(found.most_cohort), "of one server with this fleet"),
    ]
    lines = [output.table(("", "", "what it is"), rows), ""]
    lines.append(f"Measured on {costs.machine}, at commit {costs.commit}; R² of a round's seconds: {costs.r2:.4f}.")
    lines.append(
        f"Measured with up to {costs.most_online:,} devices online and {costs.most_reports:,} reports a round."
    )
    if found.is_extrapolated:
        lines.append("This fleet or round is larger: the figures assume that costs go on growing in proportion.")
    lines += ["Not in these figures:", *(f"  {entry}" for entry in missing)]
    return "\n".join(lines)


def _verdict(found: Needs) -> str:
    from server.advice.scale import BUSY

    if found.is_within_one_server:
        return f"one server keeps up (it should stay below {BUSY})"
    return f"too much for one server (it should stay below {BUSY})"


def _most(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{_number(value)} {unit}"
