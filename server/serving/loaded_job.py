"""A job with its bundle, its held-out rows and the engine that evaluates it, and what the supervisor needs of them."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.data.config import how_rows
from edge_runtime.data.rows import load_rows
from edge_runtime.engines.choose import Engines
from edge_runtime.forward_only.slices import replay_in_turn
from edge_runtime.fronts.frozen_predictor import FrozenPredictor
from server.advice.left_open import completed
from server.compose import compose_run, enter
from server.errors import JobError
from server.evaluation import BackgroundEvaluator, evaluate
from server.job.behind_needs import fit_opened
from server.job.job import Job, read_job_table
from server.queue.supervisor import Prepared
from server.ray_work.evaluating import evaluate_on
from server.ray_work.replaying import replayed_on
from server.rounds.patience import patiently
from server.storage.discard import fronts_folder, job_folder
from server.storage.result_folder import JOB_FILE, write_finished
from server.views.summary import job_summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.rows import EncodedCompletions, EncodedRows
    from edge_runtime.engines.engine import Predictor
    from edge_runtime.values import FloatVector
    from server.compose import Stores
    from server.evaluation import Evaluation
    from server.events import Event
    from server.fleet.devices import Device
    from server.job.fitted import FittedJob
    from server.ray_work.workers import Workers
    from server.rounds.coordinator import Coordinator
    from server.rounds.job_run import JobRun
    from server.rounds.services import Services
    from server.storage.records import JobRecord
    from server.trust.releases import ReleaseBook


@dataclass(frozen=True)
class LoadedJob:
    """A job whose files were read.

    Attributes:
        fitted: the job.
        bundle: its bundle.
        rows: its held-out rows.
        predictor: the engine that evaluates adapters.
        engines: makes engines like it.
    """

    fitted: FittedJob
    bundle: Bundle
    rows: EncodedRows | EncodedCompletions
    predictor: Predictor
    engines: Engines


def load_job(path: Path, bundle_path: Path) -> tuple[FittedJob, Bundle]:
    """Read a job and its bundle, and check that they fit; measured settings are filled in where the job has none.

    Raises:
        ConfigError: the job is wrong or does not fit the bundle; the message names the field.
        BundleError: the bundle is damaged.
    """
    bundle = open_bundle(bundle_path)
    verify_files(bundle)
    return fit_opened(completed(read_job_table(path), bundle.manifest, bundle.sha256), bundle), bundle


def load(fitted: FittedJob, bundle: Bundle, threads: int) -> LoadedJob:
    """Read a job's held-out rows, and load its bundle.

    Raises:
        DataError: the rows cannot be used.
        BundleError: the bundle is damaged.
    """
    rows = load_rows(bundle, how_rows(fitted.job.eval_data, fitted.job.eval_file))
    engines = Engines(threads=threads)
    return LoadedJob(fitted, bundle, rows, engines.make_predictor(bundle), engines)


def _frozen_predictor(loaded: LoadedJob, folder: Path) -> FrozenPredictor | None:
    """Return what evaluates adapters whose front is the first one's; None: the job trains the front from the start."""
    if not loaded.fitted.job.frozen_rounds:
        return None
    theta, rows = loaded.bundle.initial_adapter(), len(loaded.rows)
    return FrozenPredictor(loaded.bundle, loaded.fitted.split, theta, loaded.engines, folder, rows, loaded.predictor)


def _evaluated(
    loaded: LoadedJob, frozen: FrozenPredictor | None, workers: Workers | None
) -> Callable[[FloatVector], Evaluation]:
    """Return what evaluates the job's adapters; where a front is frozen, this process looks its activations up."""
    n_labels = len(loaded.bundle.manifest.task.labels)
    if workers is not None and frozen is None:
        return evaluate_on(workers, loaded.bundle, loaded.rows, n_labels)
    predictor = frozen or loaded.predictor
    return lambda theta: evaluate(predictor, theta, loaded.rows, n_labels)


def load_submitted(record: JobRecord, threads: int) -> LoadedJob:
    """Read the files of a job that was submitted.

    Raises:
        JobError: its bundle is another one now.
        CoveyError: a file is gone or damaged.
    """
    if record.bundle_path is None:
        raise JobError(
            f"the ledger does not say where the bundle of job {record.name} is", "go on with it by covey run --bundle"
        )
    bundle = open_bundle(Path(record.bundle_path))
    verify_files(bundle)
    if bundle.sha256 != record.bundle_sha256:
        raise JobError(
            f"{record.bundle_path} has bundle {bundle.sha256[:12]} now, job {record.name} was submitted with "
            f"{record.bundle_sha256[:12]}",
            "put the job's own bundle back there, and then: covey job resume",
        )
    job = msgspec.convert(record.config, Job)
    return load(fit_opened(job, bundle), bundle, threads)


def release(loaded: LoadedJob, releases: ReleaseBook | None) -> None:
    """Sign a job's bundle for the fleet's devices, before a plan names it; a fleet without an authority signs nothing.

    Raises:
        ReleaseError: its model's name cannot be signed.
        StorageError: a key is damaged, or the serial cannot be written.
    """
    if releases is not None:
        releases.take("bundle", loaded.bundle.manifest.model.name, loaded.bundle.sha256)


def prepare(
    loaded: LoadedJob,
    coordinator: Coordinator,
    stores: Stores,
    services: Services,
    state_dir: Path,
    should_stop: Callable[[], bool],
    workers: Workers | None = None,
) -> Prepared:
    """Enter a job in the ledger, or resume it, and return what the supervisor needs to run it.

    Args:
        loaded: the job.
        coordinator: the fleet's coordinator.
        stores: what the server keeps on disk.
        services: what the coordinator uses; the job gets an evaluator of its own.
        state_dir: the server's state directory.
        should_stop: asked while the result is written, for want of file descriptors.
        workers: replay and evaluate for the job; None: this process does.

    Raises:
        JobError: the job is finished, was begun with another configuration, or has lost an adapter.
        StorageError: the ledger cannot be written.
    """
    fitted, bundle = loaded.fitted, loaded.bundle
    stores.blobs.add_bundle(bundle)
    replayed = replay_in_turn if workers is None else replayed_on(workers)
    chain, resumed = enter(coordinator.roster.fleet, fitted, bundle, stores, replayed)
    fronts = fronts_folder(state_dir, fitted.job.name)
    frozen = _frozen_predictor(loaded, fronts)
    evaluated = _evaluated(loaded, frozen, workers)

    def composed(observe: Callable[[Event], None], has: Callable[[Device], bool]) -> tuple[JobRun, bool]:
        evaluator = BackgroundEvaluator(evaluated)
        own = dataclasses.replace(services, evaluator=evaluator)
        return compose_run(coordinator, fitted, chain, stores, own, observe, has), resumed

    def finish() -> str:
        if frozen is not None:
            frozen.close()
            shutil.rmtree(fronts, ignore_errors=True)  # held-out rows are evaluated no more
        folder = job_folder(state_dir, fitted.job.name) / "adapter"
        if not (folder / JOB_FILE).exists():
            summary = job_summary(stores.ledger, fitted.job.name)
            patiently(lambda: write_finished(bundle, chain.theta, folder, summary), should_stop)
        return str(folder)

    return Prepared(composed, finish)
