"""Simulates a job: real coordinator, simulated devices, virtual time."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.bundle.levels import listed
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.device.memory import peak_rss_bytes
from edge_runtime.errors import ConfigError, DataError
from edge_runtime.protocol.step_rule import StepRule
from server.advice.left_open import completed
from server.compose import compose, open_stores
from server.errors import JobError
from server.evaluation import InlineEvaluator
from server.job.fitted import FittedJob, fit_to_bundle
from server.job.job import Job, JobBandit, JobStld, read_job, read_job_table
from server.profiles.files import read_profile
from server.ray_work.workers import Recipe, Shared, open_workers
from server.rounds.services import Services
from server.simulation.availability import DAY_S, Nights
from server.simulation.boards import common, modelled_profiles
from server.simulation.bowl import Bowl
from server.simulation.crowd import Crowd
from server.simulation.devices import Chances, SimulatedFleet
from server.simulation.figures import Counted, Pace, Traffic
from server.simulation.on_workers import OnWorkers, evaluated_on
from server.simulation.presence import FLEET, Presence
from server.simulation.task import BundleTask
from server.simulation.traces import TraceEvent, throttling
from server.simulation.training import InTurn
from server.simulation.virtual import VirtualTransport, VirtualWorld
from server.storage import queries
from server.storage.ledger_address import LEDGER_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_runtime.bundle.levels import Level
    from edge_runtime.protocol.profile import Profile
    from edge_runtime.values import FloatVector
    from server.bandit.options import Policy
    from server.compose import Stores
    from server.evaluation import Evaluation
    from server.events import Observer
    from server.ray_work.options import RayOptions
    from server.ray_work.workers import Workers
    from server.simulation.task import SimulatedTask
    from server.storage.ledger import Ledger

JOB_NAME = "simulation"
_SECONDS_PER_ROUND = 10.0
"""Virtual seconds per round that the drawn heat waves are spread over; ours."""


@dataclass(frozen=True)
class SimulateOptions:
    """What to simulate; ``covey simulate --help`` explains each option."""

    devices: int = 1000
    rounds: int = 100
    cohort: int = 100
    over_selection: float = 1.2
    policy: Policy | None = "thompson"
    seed: int = 0
    profiles: tuple[Path, ...] = ()
    bundle: Path | None = None
    data: Path | None = None
    job: Path | None = None
    traces: tuple[TraceEvent, ...] = ()
    drop_out: float = 0.02
    drift: float = 0.3
    throttle: float = 0.2
    jitter: float = 0.1
    min_reports: int = 1
    deadline_s: float = 600.0
    work: float = 1.0
    zones_h: float | None = None
    days: float | None = None
    ray: RayOptions | None = None


def _task_and_profiles(
    options: SimulateOptions, rng: np.random.Generator
) -> tuple[SimulatedTask, list[Profile], list[int], list[Level]]:
    """Return the task, the devices' profiles, and the splits and levels that task and profiles share."""
    if options.bundle is None or options.data is None:
        profiles = [read_profile(path) for path in options.profiles] or modelled_profiles()
        layers, splits, levels = common(profiles)
        return Bowl(layers, splits, levels, options.devices, rng), profiles, splits, levels
    bundle = open_bundle(options.bundle)
    verify_files(bundle)
    task = BundleTask(bundle, options.data, options.devices, rng)
    manifest = bundle.manifest
    if not options.profiles:
        profiles = modelled_profiles(manifest.model.layers, manifest.splits, manifest.levels)
        return task, profiles, manifest.splits, manifest.levels
    profiles = [read_profile(path) for path in options.profiles]
    layers, splits, levels = common(profiles)
    both = [split for split in splits if split in manifest.splits]
    if layers != manifest.model.layers or not both:
        raise ConfigError(
            f"the bundle has {manifest.model.layers} layers and splits {manifest.splits}, the profiles have {layers} "
            f"and {splits}",
            "give profiles of this bundle",
        )
    return task, profiles, both, [level for level in levels if level in manifest.levels]


def task_of(described: tuple[SimulateOptions, str]) -> SimulatedTask:
    """Return the task of a simulation, as every process makes it from the options and the digest of its files.

    Raises:
        DataError: a machine has other files than the command.
    """
    options, digest = described
    if files_digest(options) != digest:
        raise DataError(
            f"a machine of the Ray cluster has another bundle or other rows in {options.bundle} and {options.data}",
            "put the same files in the same place on every machine, or use a shared folder",
        )
    return _task_and_profiles(options, np.random.Generator(np.random.PCG64(options.seed)))[0]


def files_digest(options: SimulateOptions) -> str:
    """Return a digest of what a simulation reads, but for the bundle's files, which its manifest names by theirs."""
    named = [] if options.bundle is None else [options.bundle / MANIFEST_FILE]
    found = hashlib.sha256()
    for path in [*named, *([] if options.data is None else [options.data])]:
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _job(options: SimulateOptions, task: SimulatedTask, splits: Sequence[int], levels: list[Level]) -> FittedJob:
    """Return the job: its steps as in job.toml (or defaults; measured ones for a bundle), all else from the options."""
    if options.job is not None:
        if options.bundle is None:
            given = read_job(options.job)
        else:
            given = completed(read_job_table(options.job), task.manifest, task.sha256)
        fitted = fit_to_bundle(given, task.manifest, task.sha256)
    else:
        base = Job(
            name=JOB_NAME,
            eval_file="",
            steps=2,
            split=splits[-1],
            schedule="constant",
            step=StepRule(back_perturbations=4, learning_rate=0.05),
            stld=JobStld(levels=levels, learning_rate=0.02, steps=2) if levels else None,
        )
        fitted = FittedJob.unchecked(base, task.manifest, task.sha256)
    if fitted.split not in splits or not set(fitted.levels) <= set(levels):
        raise ConfigError(
            f"the job's split {fitted.split} or levels {listed(fitted.levels)} have no times: the profiles have "
            f"{list(splits)} and {listed(levels)}",
            "give profiles of this bundle",
        )
    job = msgspec.structs.replace(
        fitted.job,
        name=JOB_NAME,
        rounds=options.rounds,
        seed=options.seed,
        cohort=min(options.cohort, options.devices),
        over_selection=options.over_selection,
        min_reports=options.min_reports,
        min_devices=max(options.min_reports, options.devices // 2) if options.zones_h is None else 0,
        deadline_s=options.deadline_s,
        bandit=None if options.policy is None else JobBandit(policy=options.policy),
        adaptive=fitted.job.adaptive if options.policy is None else None,
    )
    return FittedJob.unchecked(job, task.manifest, task.sha256)


def simulate(
    options: SimulateOptions,
    observe: Observer = lambda _event: None,
    should_stop: Callable[[], bool] = lambda: False,
    state_dir: Path | None = None,
) -> dict[str, Any] | None:
    """Simulate a job.

    Args:
        options: what to simulate.
        observe: receives events.
        should_stop: asked between messages.
        state_dir: keeps the ledger; None: a temporary folder.

    Returns:
        Virtual and real seconds, losses, how often each arm ran, waits; None: it was stopped.

    Raises:
        ConfigError: the options do not fit together.
        ProfileError: a profile is invalid.
        BundleError: the bundle is damaged.
        DataError: the rows are wrong, or too few.
        JobError: a round failed too often.
        NetworkError: the Ray cluster does not answer, or is lost.
    """
    rng = np.random.Generator(np.random.PCG64(options.seed))
    task, profiles, splits, levels = _task_and_profiles(options, rng)
    fitted = _job(options, task, splits, levels)
    with contextlib.ExitStack() as stack:
        root = _folder(state_dir, stack)
        stores = open_stores(root, durable=False)
        stack.callback(stores.ledger.close)
        world = VirtualWorld()
        counted = Counted(Traffic(), Pace(world.clock, observe))
        fleet = _fleet(options, world, task, profiles, stores, rng, counted)
        evaluated = _with_workers(
            stack.enter_context(open_workers(options.ray, should_stop)), options, task, fleet, rng
        )

        def services() -> Services:
            transport = VirtualTransport(world, fleet.deliver)
            evaluator = InlineEvaluator(evaluated)
            return Services(transport, stores.uploads, evaluator, world.clock, blob_url="http://simulated")

        composed = compose(FLEET, fitted, task, stores, services, counted.pace.observe)
        started, cpu_started = time.perf_counter(), time.process_time()
        until_s = math.inf if options.days is None else options.days * DAY_S
        finished = composed.run(lambda: world.now >= until_s or should_stop())
        if not finished and world.now < until_s:
            return None
        stores.ledger.end_job(fitted.job.name, "finished" if finished else "stopped", None)
        return {
            **_result(stores.ledger, fitted.job),
            **counted.pace.result(),
            **counted.traffic.result(),
            **_spent(world, fleet, started, cpu_started),
        }


def _spent(world: VirtualWorld, fleet: SimulatedFleet, started_s: float, cpu_started_s: float) -> dict[str, Any]:
    """Return what a simulation took since these readings of the real clock and of the process's."""
    return {
        "virtual_s": world.now,
        "wall_s": time.perf_counter() - started_s,
        "cpu_s": time.process_time() - cpu_started_s,
        "device_rounds": fleet.device_rounds,
        "messages": world.delivered,
        "peak_rss_mb": peak_rss_bytes() / 2**20,
    }


def _folder(state_dir: Path | None, stack: contextlib.ExitStack) -> Path:
    """Return the folder, or without one a new one that goes with the stack: in memory where that can be."""
    if state_dir is not None:
        if (state_dir / LEDGER_FILE).exists():
            raise ConfigError(f"{state_dir} has a ledger already", "give --state-dir a new folder")
        return state_dir
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 mkdtemp makes a new folder in it
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="covey-simulate-", dir=in_memory)))


def _with_workers(
    workers: Workers | None,
    options: SimulateOptions,
    task: SimulatedTask,
    fleet: SimulatedFleet,
    rng: np.random.Generator,
) -> Callable[[FloatVector], Evaluation]:
    """Have workers train the fleet, where there are any; return what evaluates adapters."""
    if workers is None:
        return task.evaluate
    fleet.trainer = OnWorkers(workers, Recipe(task_of, Shared((options, files_digest(options)))), InTurn(task, rng))
    return evaluated_on(workers, task)


def _fleet(
    options: SimulateOptions,
    world: VirtualWorld,
    task: SimulatedTask,
    profiles: Sequence[Profile],
    stores: Stores,
    rng: np.random.Generator,
    counted: Counted,
) -> SimulatedFleet:
    """Return the fleet, which has joined and follows the traces."""
    crowd = Crowd(_of_bundle(profiles, task.sha256), options.devices, options.drift, options.work, rng)
    presence = Presence(world, crowd, task, counted, tells_profiles=options.policy is not None)
    chances = Chances(options.drop_out, options.jitter, rng)
    fleet = SimulatedFleet(world, task, crowd, presence, stores.blobs, stores.uploads.blobs, chances, counted.traffic)
    length_s = _SECONDS_PER_ROUND * options.rounds
    presence.follow(options.traces)
    presence.follow(throttling(crowd.names(), options.throttle, length_s, rng))
    if options.zones_h is not None:
        nights = Nights(options.devices, options.zones_h, np.random.Generator(np.random.PCG64([options.seed, 1])))
        presence.follow_changes(nights.changes())
    return fleet


def _of_bundle(profiles: Sequence[Profile], sha256: str) -> list[Profile]:
    return [
        msgspec.structs.replace(profile, bundle=msgspec.structs.replace(profile.bundle, sha256=sha256))
        for profile in profiles
    ]


def _result(ledger: Ledger, job: Job) -> dict[str, Any]:
    rounds = [made for made in queries.rounds_of(ledger, job.name) if made.state == "aggregated"]
    first = queries.find_job(ledger, job.name)
    if first is None or not rounds:
        raise JobError("no round was aggregated", "lower drop-out, or raise the deadline")
    offers = queries.offers_of(ledger, job.name)
    arms: dict[str, int] = {}
    last: dict[str, int] = {}
    longest = 0
    for offer in offers:
        longest = max(longest, offer.index - last.get(offer.device, -1) - 1)
        last[offer.device] = offer.index
        name = "forward" if offer.level is None else f"level {offer.level}"
        arms[name] = arms.get(name, 0) + 1
    return {
        "job": job.name,
        "rounds": len(rounds),
        "reports": sum(offer.state == "reported" for offer in offers),
        "offers": len(offers),
        "loss_start": first.loss_start,
        "loss_end": rounds[-1].loss,
        "accuracy_start": first.accuracy_start,
        "accuracy_end": rounds[-1].accuracy,
        "adapter_sha256": rounds[-1].result_sha256,
        "longest_wait_rounds": longest,
        "devices_chosen": len(last),
        "arms": dict(sorted(arms.items())),
    }
