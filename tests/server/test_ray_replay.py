"""Replay on workers of Ray: the same bits as in one process, whatever their number and whichever of them dies."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
from ray_clusters import two_nodes
from ray_pieces import dies_once
from round_logs import chain_of, make_log

from edge_runtime.bundle.adapter import CHUNK
from edge_runtime.errors import TrainingError
from edge_runtime.files.hashing import file_sha256
from edge_runtime.forward_only.replay_file import write_replayed
from edge_runtime.forward_only.slices import MomentFiles, replay_in_turn
from edge_runtime.protocol.step_rule import Curvature, StepRule
from server.ray_work.options import RayOptions
from server.ray_work.replaying import replayed_on
from server.ray_work.workers import Recipe, Shared, Workers, as_described, open_workers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.forward_only.slices import Replayed, ReplayFiles, ReplayTask, Slice
    from edge_runtime.protocol.round_log import RoundLog
    from edge_runtime.values import FloatVector

SIZE, FRONT = 7_531, 2_250
RULES = {
    "nested": StepRule(front_perturbations=2, back_perturbations=3, leave_one_out=True),
    "clean": StepRule(variant="clean", difference="forward", normalize="std"),
    "shared": StepRule(shared_directions=True, normalize="none", learning_rate=1e-4),
    "pool": StepRule(seed_pool=5),
    "kept": StepRule(keep_directions=2),
    "frozen": StepRule(front="frozen"),
    "curvature": StepRule(curvature=Curvature(decay=0.8, floor=0.5)),
    "sign": StepRule(sign_momentum=0.5),
}
CLUSTERS = [pytest.param(1, marks=pytest.mark.long), 2, "two nodes", pytest.param(3, marks=pytest.mark.long)]


@pytest.fixture(scope="module", params=CLUSTERS, ids=str)
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """One worker, two, one on each of two nodes, or three."""
    if request.param == "two nodes":
        with two_nodes() as cluster, open_workers(RayOptions(address=cluster.address)) as opened:
            assert opened is not None
            assert opened.number == 2
            yield opened
        return
    with open_workers(RayOptions(request.param)) as opened:
        assert opened is not None
        assert opened.number == request.param
        yield opened


@pytest.fixture
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.forward_only.replay_file.CHUNK", 1000)


def theta_of(size: int) -> FloatVector:
    return np.random.Generator(np.random.PCG64(5)).normal(size=size).astype(np.float32)


def chain(rule: StepRule, momentum: float) -> list[RoundLog]:
    """Three rounds, the last of which has a device with a P2 of its own where the rule can have one."""
    if rule.keeps_moment:
        return [make_log(rule, 2, seed=index, round=index, front_size=FRONT) for index in range(3)]
    return chain_of(rule, 3, 2, momentum, theta_of(SIZE), FRONT)[0]


def written(folder: Path, logs: list[RoundLog], replayed: Replayed, theta: FloatVector) -> list[str]:
    """The hashes of the adapter, of the one before the last round, and of the moment; what is read is mapped."""
    folder.mkdir()

    def mapped(name: str, values: FloatVector) -> FloatVector:
        path = folder.with_name(f"{folder.name}-{name}")
        values.tofile(path)
        return np.memmap(path, dtype="<f4", mode="r")

    needs_moment = logs[0].rule.keeps_moment
    moment = MomentFiles(mapped("moment", np.abs(theta)), folder / "moment") if needs_moment else None
    base, previous = mapped("theta", theta), mapped("previous", theta[::-1])
    sha256, _ = write_replayed(folder / "adapter", base, logs, previous, folder / "before", moment, replayed=replayed)
    assert sha256 == file_sha256(folder / "adapter")
    return [file_sha256(path) for path in sorted(folder.iterdir())]


@pytest.mark.usefixtures("_small_slices")
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_workers_write_what_one_process_writes(
    tmp_path: Path, workers: Workers, rule: StepRule, momentum: float
) -> None:
    logs = chain(rule, momentum)
    if momentum and rule.keeps_moment:
        logs = [msgspec.structs.replace(log, momentum=momentum, previous_sha256="1" * 64) for log in logs]
    alone = written(tmp_path / "alone", logs, replay_in_turn, theta_of(SIZE))
    assert written(tmp_path / "ray", logs, replayed_on(workers, alone=0), theta_of(SIZE)) == alone
    assert len(alone) == 2 + rule.keeps_moment


def test_a_large_adapter_is_divided_and_a_small_one_is_not(tmp_path: Path, workers: Workers) -> None:
    theta = theta_of(2 * CHUNK + 77)
    logs = [make_log(StepRule(), 2, front_size=CHUNK + 5)]
    alone = written(tmp_path / "alone", logs, replay_in_turn, theta)
    assert written(tmp_path / "ray", logs, replayed_on(workers), theta) == alone
    in_memory, _ = write_replayed(tmp_path / "in-memory", theta, logs, replayed=replayed_on(workers))
    assert in_memory == file_sha256(tmp_path / "alone" / "adapter")
    handed: list[Any] = []
    watched = Watched(workers, handed)
    small = theta[:CHUNK]
    assert written(tmp_path / "small", logs, replayed_on(watched), small) == written(  # type: ignore[arg-type]
        tmp_path / "small-alone", logs, replay_in_turn, small
    )
    assert not handed


class Watched:
    """Workers that write down what they are handed."""

    def __init__(self, workers: Workers, handed: list[Any]) -> None:
        self._workers, self._handed = workers, handed

    def in_order(self, *arguments: Any) -> Iterator[Any]:
        self._handed.append(arguments)
        return self._workers.in_order(*arguments)


@pytest.mark.usefixtures("_small_slices")
def test_a_worker_that_is_killed_in_the_middle_changes_nothing(tmp_path: Path, workers: Workers) -> None:
    logs, marker = chain(RULES["curvature"], 0.0), tmp_path / "killed"

    def replayed(task: ReplayTask, files: ReplayFiles) -> Iterator[Slice]:
        return workers.in_order(Recipe(as_described, Shared(task)), dies_once, files.slices(), str(marker))

    alone = written(tmp_path / "alone", logs, replay_in_turn, theta_of(SIZE))
    assert written(tmp_path / "ray", logs, replayed, theta_of(SIZE)) == alone
    assert marker.exists()


@pytest.mark.usefixtures("_small_slices")
def test_an_error_of_a_worker_is_the_one_of_this_process(tmp_path: Path, workers: Workers) -> None:
    theta = theta_of(SIZE)
    theta[3_500] = np.inf
    found = []
    for replayed in (replay_in_turn, replayed_on(workers, alone=0)):
        write = partial(write_replayed, tmp_path / "adapter", theta, [make_log(StepRule(), 1)], replayed=replayed)
        with pytest.raises(TrainingError, match="not finite") as raised:
            write()
        found.append(str(raised.value))
        assert not list(tmp_path.iterdir())
    assert found[0] == found[1]
