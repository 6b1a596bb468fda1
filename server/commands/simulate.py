"""``covey simulate``: run a job on simulated devices."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from edge_runtime import output
from edge_runtime.errors import ConfigError
from server.commands.shared_options import add_ray, ray_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from server.commands.shared_options import Commands

_OFF = "off"
_DAY_H = 24
_LEAST = {"devices": 1, "rounds": 1, "cohort": 0, "over_selection": 1, "seed": 0, "drift": 0, "min_reports": 1}


def add_simulate(commands: Commands[argparse.ArgumentParser], stop: Callable[[], Callable[[], bool]]) -> None:
    """Add ``covey simulate``.

    Args:
        commands: the commands of ``covey``.
        stop: returns the function that says whether to stop; called when the command starts.
    """
    from server.bandit.options import Policy

    parser = commands.add_parser("simulate", help="a job on simulated devices", description=_simulate.__doc__)
    for name, kind, default, what in (
        ("devices", int, 1000, "how many devices"),
        ("rounds", int, 100, "how many rounds"),
        ("cohort", int, 100, "reports per round; 0: one from every device"),
        ("over-selection", float, 1.2, "offer a round to cohort × this factor devices"),
        ("seed", int, 0, "seed of every random choice"),
        ("drop-out", float, 0.02, "probability that a device vanishes during a round, for five minutes"),
        ("drift", float, 0.3, "spread of the true speeds around the profiles: standard deviation of the logarithm"),
        ("throttle", float, 0.2, "share of the devices that get hot and are 1.5 to 3 times slower for a while"),
        ("jitter", float, 0.1, "spread of a round's time: standard deviation of its logarithm"),
        ("deadline-s", float, 600.0, "the job's deadline in virtual seconds"),
        ("min-reports", int, 1, "reports that a round needs; fewer devices are waited for"),
        ("work", float, 1.0, "factor on the times of all steps: a larger model, or more steps than are really run"),
        ("days", float, None, "end after so many virtual days, if the rounds are not done before"),
    ):
        shown = "" if default is None else " (default: %(default)s)"
        parser.add_argument(f"--{name}", type=kind, default=default, help=what + shown)
    parser.add_argument(
        "--nights",
        type=float,
        metavar="HOURS",
        help="devices are on for about eight hours a night, in time zones spread over so many hours, 0 to 24 "
        "(default: always on)",
    )
    parser.add_argument(
        "--policy",
        choices=[*get_args(Policy), _OFF],
        default="thompson",
        help="of the bandit (docs/bandit.md); off: the largest level that fits (default: %(default)s)",
    )
    parser.add_argument(
        "--profiles",
        type=Path,
        nargs="+",
        default=[],
        metavar="PROFILE",
        help="files or boards' folders, all of one model, for the devices in turn (default: three invented classes)",
    )
    _add_learning(parser)
    parser.add_argument("--traces", type=Path, metavar="FILE", help="events that happen to devices, as JSON lines")
    parser.add_argument("--state-dir", type=Path, help="folder that keeps the ledger (default: it is deleted)")
    add_ray(parser, "train the devices and evaluate")
    output.add_format(parser)
    parser.set_defaults(run=_simulate, stop=stop)


def _add_learning(parser: argparse.ArgumentParser) -> None:
    """Add the options of what the devices learn."""
    parser.add_argument(
        "--bundle", type=Path, help="what the devices learn (default: a layered quadratic bowl); needs --data and --job"
    )
    parser.add_argument("--data", type=Path, help="with --bundle: rows to deal out to the devices; a fifth is held out")
    parser.add_argument(
        "--job",
        type=Path,
        metavar="job.toml",
        help="with --bundle: steps, batch sizes and rates; the flags give the rest",
    )


def _check(args: argparse.Namespace) -> None:
    for name, least in _LEAST.items():
        if not getattr(args, name) >= least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}", "see covey simulate --help")
    for name in ("drop_out", "throttle"):
        if not 0 <= getattr(args, name) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} is a share: 0 to 1", "see covey simulate --help")
    if not args.jitter >= 0 or not args.deadline_s > 0:
        raise ConfigError("--jitter must not be negative, and --deadline-s must be above 0", "leave them out")
    for name in ("work", "days"):
        if getattr(args, name) is not None and not 0 < getattr(args, name) < math.inf:
            raise ConfigError(f"--{name} must be above 0", "see covey simulate --help")
    if args.nights is not None and not 0 <= args.nights <= _DAY_H:
        raise ConfigError("--nights is a number of hours, 0 to 24", "see covey simulate --help")
    if len({args.bundle is None, args.data is None, args.job is None}) > 1:
        raise ConfigError("--bundle, --data and --job belong together", "give all three, or none")


def _simulate(args: argparse.Namespace) -> int:
    """Run a job on simulated devices: real server, protocol and bandit, in virtual time from profiles and traces.

    Without --bundle the devices learn a layered quadratic bowl instead of a model: the result tells about the server,
    times and choices, not about accuracy. With --bundle they run the real steps on real rows, one after the other
    or on workers. The same seed gives the same result.
    """
    from server.simulation.run import SimulateOptions, simulate
    from server.simulation.traces import read_traces

    _check(args)
    options = SimulateOptions(
        devices=args.devices,
        rounds=args.rounds,
        cohort=args.cohort,
        over_selection=args.over_selection,
        policy=None if args.policy == _OFF else args.policy,
        seed=args.seed,
        profiles=tuple(args.profiles),
        bundle=None if args.bundle is None else args.bundle.resolve(),
        data=None if args.data is None else args.data.resolve(),
        job=args.job,
        traces=() if args.traces is None else tuple(read_traces(args.traces)),
        drop_out=args.drop_out,
        drift=args.drift,
        throttle=args.throttle,
        jitter=args.jitter,
        deadline_s=args.deadline_s,
        min_reports=args.min_reports,
        work=args.work,
        zones_h=args.nights,
        days=args.days,
        ray=ray_of(args),
    )
    result = simulate(options, should_stop=args.stop(), state_dir=args.state_dir)
    if result is None:
        return output.INTERRUPTED
    arms = result["arms"]
    lines = [f"{key:24} {value}" for key, value in result.items() if key != "arms"]
    rows = [[name, count, f"{count / max(result['offers'], 1):.1%}"] for name, count in arms.items()]
    output.emit(args, result, "\n".join(lines) + "\n\n" + output.table(("arm", "offers", "share"), rows))
    return 0
