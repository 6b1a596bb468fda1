"""``covey-edge doctor``: what this device has and can reach, and what to do about what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import output

if TYPE_CHECKING:
    import argparse


def add_doctor_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``doctor``."""
    doctor = commands.add_parser(
        "doctor", help="what this device has and can reach, and what to do", description=_doctor.__doc__
    )
    doctor.add_argument("--config", type=Path, metavar="edge.toml", help="look at its broker, server and data too")
    doctor.add_argument("--build", action="store_true", help="compile the ExecuTorch engine if that is not done yet")
    output.add_format(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(args: argparse.Namespace) -> int:
    """Check engines, memory, sensors, clock, data, membership, broker and server.

    It logs in to the broker as covey-edge run does, subscribes, publishes, sees that a message comes back and whether
    the server's hello is there, and asks the server for a blob. Exit code 0, or that of the first problem.
    """
    import time

    from edge_runtime.commands.doctor_natives import numpy_finding
    from edge_runtime.commands.finding import emit_findings

    findings = [numpy_finding()]
    if findings[0].status == "ok":  # else importing the other checks could end this process
        from edge_runtime.agent.config import read_edge_config
        from edge_runtime.commands.doctor_checks import examine
        from edge_runtime.commands.doctor_network import membership_findings

        config = read_edge_config(args.config) if args.config else None
        if args.config:
            findings += membership_findings(args.config.absolute())
        findings += examine(config, time.time, build=args.build)
    return emit_findings(args, findings)
