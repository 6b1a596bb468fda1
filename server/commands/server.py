"""``covey server``: the state of a running server, what keeps one from starting, and a systemd unit for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime import output
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, ask, open_client
from server.commands.serve import add_addresses, options_of
from server.commands.shared_options import add_state_dir
from server.views.tables import short, short_table

if TYPE_CHECKING:
    import argparse

    from server.commands.shared_options import Commands

_AUDIT = ("at", "actor", "way", "address", "action", "subject", "detail", "outcome")


def add_server_commands(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``server`` and its commands, and ``doctor``."""
    server = commands.add_parser("server", help="look after a fleet's server").add_subparsers(
        required=True, metavar="COMMAND"
    )
    status = server.add_parser("status", help="what a running server is doing", description=_status.__doc__)
    add_reaching(status)
    status.set_defaults(run=needs_server(_status))
    for among in (commands, server):  # covey doctor, as covey-edge doctor; and with the server's other commands
        doctor = among.add_parser("doctor", help="what keeps a server from work", description=_doctor.__doc__)
        add_addresses(doctor)
        add_state_dir(doctor)
        output.add_format(doctor)
        doctor.set_defaults(run=needs_server(_doctor))
    metrics = server.add_parser("metrics", help="print what Prometheus scrapes", description=_metrics.__doc__)
    add_reaching(metrics)
    metrics.set_defaults(run=needs_server(_metrics))
    unit = server.add_parser("unit", help="print a systemd unit", description=_unit.__doc__)
    add_addresses(unit)
    add_state_dir(unit)
    unit.add_argument("--user", help="the user that runs it (default: the one that calls this)")
    unit.set_defaults(run=needs_server(_unit))
    audit = server.add_parser("audit", help="who changed what", description=_audit.__doc__)
    audit.add_argument("--since", metavar="TIME", help="7d, 12h; or, in UTC, 2026-11-28 or '2026-11-28 12:00:00'")
    audit.add_argument("-n", "--lines", type=int, default=100, help="newest entries (default: %(default)s)")
    add_reaching(audit)
    audit.set_defaults(run=needs_server(_audit))
    for parser in (status, metrics, unit, audit):
        output.add_format(parser)


def _status(args: argparse.Namespace) -> int:
    """Show a running server: its version, fleet and ports, how many devices are here, which jobs are at work."""
    answer = ask(args, "GET", "/server")
    shown = {key: "-" if value in (None, [], {}) else short(value) for key, value in answer.items()}
    output.emit(args, answer, "\n".join(f"{key:16} {value}" for key, value in shown.items()))
    return 0


def _metrics(args: argparse.Namespace) -> int:
    """Print what a running server tells Prometheus, in its text format; with --format json as one string.

    Prometheus itself scrapes /metrics at --api-port (docs/operating.md). This serves a collector of text files:

    covey server metrics > /var/lib/node_exporter/covey.prom
    """
    with open_client(args) as client:
        text = client.metrics()
    output.emit(args, {"metrics": text}, text.rstrip())
    return 0


def _audit(args: argparse.Namespace) -> int:
    """Show which changes operators asked for, from where, and what became of each; the newest is the last.

    Without a running server, from the ledger. An outcome that is not known was being done when the server ended.

    covey server audit --since 7d; covey server audit -n 1000 --format json
    """
    from server.commands.audit_pages import audit_entries

    entries = audit_entries(args)
    output.emit(args, {"entries": entries}, short_table(entries, _AUDIT))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    """Check what covey serve needs with the same options: state directory, ledger, ports, broker, clock, jobs' files.

    It logs in to the broker as covey serve does, subscribes, publishes and sees that a message comes back; of a server
    that runs, it asks the HTTP side and the joining side as devices do.

    Exit code 0, or that of the first problem.
    """
    from edge_runtime.commands.finding import emit_findings
    from server.commands.server_checks import examine

    return emit_findings(args, examine(options_of(args)))


def _unit(args: argparse.Namespace) -> int:
    """Print a systemd unit that runs covey serve with the same options and starts it again after a failure.

    covey server unit | sudo tee /etc/systemd/system/covey.service; sudo systemctl enable --now covey
    """
    import getpass

    from server.commands.systemd_unit import unit_text

    text = unit_text(options_of(args), args.user or getpass.getuser())
    output.emit(args, {"unit": text}, text.rstrip())
    return 0
