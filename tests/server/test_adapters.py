"""The chain of adapters: each device gets the cheaper way, and old blobs are deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.errors import TrainingError
from edge_runtime.forward_only.replay import round_terms
from edge_runtime.protocol.round_log import RoundLog, decode_chain, pack_scalars
from edge_runtime.protocol.step_rule import StepRule
from server.errors import JobError
from server.job.job import Job
from server.rounds.aggregate import aggregate
from server.storage.adapters import AdapterChain, RoundBase
from server.storage.blobs import BlobStore
from server.storage.records import ClosedRound, RoundPlan, TakenReport

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

JOB = Job(
    name="job", eval_file="x", split=2, steps=1, server_momentum=0.5, step=StepRule(back_perturbations=2), rounds=20
)


class Chains:
    def __init__(self, root: Path, bundle: Bundle) -> None:
        self.bundle = bundle
        self.blobs = BlobStore(root / "blobs")
        self.chain = AdapterChain(bundle, self.blobs, [], momentum=True)

    def next_log(self, scalar: float) -> RoundLog:
        chain, index = self.chain, len(self.chain.closed)
        reports = {"pi": TakenReport(pack_scalars(np.array([scalar, 1.0], np.float32)), 1)}
        plan = RoundPlan(2, JOB.rule_of(index))
        return aggregate(self.bundle.manifest.parameters, JOB, index, plan, chain.base, reports).log

    def close(self, scalar: float = 0.5) -> str:
        log, blob, terms = self.chain.extend(self.next_log(scalar))
        figures = aggregate(
            self.bundle.manifest.parameters,
            JOB,
            log.round,
            RoundPlan(2, log.rule),
            RoundBase("a" * 64, None, None),
            {"pi": TakenReport(log.devices[0].scalars, 1)},
        ).figures
        assert terms == len(round_terms(log))
        closed = ClosedRound(
            log.round, log.base_sha256, log.result_sha256, blob.sha256, blob.size_bytes, terms, None, figures
        )
        self.chain.advance(closed)
        return closed.result_sha256


@pytest.fixture
def chains(tmp_path: Path, tiny_bundle: Bundle) -> Chains:
    return Chains(tmp_path, tiny_bundle)


def test_a_device_that_missed_rounds_gets_one_blob_with_their_logs(chains: Chains) -> None:
    first, second = chains.close(), chains.close(-0.25)
    chains.close(2.0)
    for have, rounds in ((None, [0, 1, 2]), (first, [1, 2]), (second, [2])):
        reference = chains.chain.reference(have)
        assert reference.log is not None
        assert reference.log_base_sha256 == (have or chains.chain.initial_sha256)
        data = chains.blobs.read(reference.log.sha256)
        assert data is not None
        assert len(data) == reference.log.size_bytes
        assert [log.round for log in decode_chain(data)] == rounds
    assert chains.chain.reference(chains.chain.sha256).log is None
    assert chains.chain.reference("9" * 64).log is None


def test_link_and_replay_rate_decide(chains: Chains) -> None:
    first = chains.close()
    chains.close()
    assert chains.chain.reference(first, 1e6, 1e9).log is not None
    assert chains.chain.reference(first, 1e9, 1e3).log is None  # a fast link, a slow processor
    assert chains.chain.reference(first, 1e3, 1e3).log is not None
    assert chains.chain.reference(first, None, 1e3).log is not None  # not measured yet: fewer bytes


def test_old_files_and_logs_that_no_device_can_need_go(chains: Chains, tmp_path: Path) -> None:
    hashes = [chains.close(0.1 * index) for index in range(30)]
    kept = {path.name for path in (tmp_path / "blobs").iterdir()}
    assert set(hashes[-3:]) <= kept
    assert not set(hashes[:-3]) & kept
    file_bytes = 4 * chains.chain.theta.size
    logs = [closed for closed in chains.chain.closed if closed.log_sha256 in kept]
    assert file_bytes <= sum(closed.log_size_bytes for closed in logs) < file_bytes + 2 * logs[0].log_size_bytes
    assert chains.chain.reference(hashes[-2]).log is not None
    assert chains.chain.reference(hashes[0]).log is None
    again = AdapterChain(chains.bundle, chains.blobs, chains.chain.closed, momentum=True)
    assert again.theta.tobytes() == chains.chain.theta.tobytes()
    assert adapter_sha256(again.theta) == hashes[-1]


def test_a_resumed_job_without_its_adapter_is_an_error(chains: Chains, tmp_path: Path) -> None:
    chains.close()
    with pytest.raises(JobError, match="is not in the state directory"):
        AdapterChain(chains.bundle, BlobStore(tmp_path / "elsewhere"), chains.chain.closed, momentum=True)


@pytest.mark.parametrize("damage", ["empty", "nul", "bit", "cut"])
@pytest.mark.parametrize("which", [-1, -2])
def test_a_server_does_not_go_on_from_a_damaged_adapter(chains: Chains, damage: str, which: int) -> None:
    """The current one and, with momentum, the one before it: set aside; with the file from a backup it goes on."""
    hashes = [chains.close(), chains.close(-0.25)]
    path = chains.blobs.path(hashes[which])
    assert path is not None
    sound = path.read_bytes()
    flipped = bytes([sound[0] ^ 1]) + sound[1:]
    path.unlink()  # the chain has mapped the old file
    path.write_bytes({"empty": b"", "nul": bytes(len(sound)), "bit": flipped, "cut": sound[:-4]}[damage])

    def resume(*, momentum: bool) -> AdapterChain:
        return AdapterChain(chains.bundle, chains.blobs, chains.chain.closed, momentum=momentum)

    if which == -2:
        resume(momentum=False)  # nobody needs it
    with pytest.raises(JobError, match="is not in the state directory, or damaged") as caught:
        resume(momentum=True)
    assert str(path) in caught.value.hint
    assert path.with_name(f"{path.name}.bad").is_file()
    path.write_bytes(sound)
    assert resume(momentum=True).sha256 == hashes[-1]


def test_devices_get_the_file_where_a_log_is_damaged(chains: Chains) -> None:
    first, _, _ = chains.close(), chains.close(-0.25), chains.close(2.0)
    log = chains.chain.closed[-1].log_sha256
    path = chains.blobs.path(log or "")
    assert path is not None
    path.write_bytes(bytes(path.stat().st_size))
    assert chains.chain.reference(first).log is None


def test_a_blob_that_is_added_again_mends_a_damaged_one(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    for spoilt in (b"", b"\0" * 7, b"content!"):
        ref = blobs.add(b"content")
        (tmp_path / ref.sha256).write_bytes(spoilt)
        assert blobs.whole(blobs.add(b"content").sha256) == tmp_path / ref.sha256
    (tmp_path / ref.sha256).unlink()
    (tmp_path / ref.sha256 / "x").mkdir(parents=True)
    assert blobs.read(blobs.add(b"content").sha256) == b"content"
    assert (tmp_path / f"{ref.sha256}.bad" / "x").is_dir()


def test_an_adapter_that_is_not_finite_leaves_the_chain_as_it_was(chains: Chains) -> None:
    before = chains.chain.sha256
    chains.chain.theta = np.full_like(chains.chain.theta, np.inf)
    with pytest.raises(TrainingError, match="not finite"):
        chains.chain.extend(chains.next_log(0.5))
    assert chains.chain.sha256 == before
