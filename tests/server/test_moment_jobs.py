"""Jobs whose rule keeps a moment: late devices, restarts, lost files, and what cannot be combined with one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from bench import FORWARD_ONLY, JOB, RULE, Bench, bench_of, birth_of, drain
from fleets import edge_configs, write_job
from tiny_models import reviews, write_rows

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.bundle.folder import Bundle
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.plans import AdapterRef
from edge_runtime.protocol.reports import RoundReport
from edge_runtime.protocol.round_log import RoundLog, decode_chain, pack_scalars
from edge_runtime.protocol.step_rule import SWITCHES, Curvature, StepRule
from server import events
from server.errors import JobError
from server.job.fitted import fit_to_bundle
from server.job.job import read_job
from server.rounds.aggregate import aggregate
from server.rounds.least_versions import why_too_old
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process
from server.simulation.run import SimulateOptions, simulate
from server.storage import queries
from server.storage.adapters import AdapterChain
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE
from server.storage.records import ClosedRound, RoundFigures, RoundPlan, TakenReport

DEVICES = 4
CURVED = {"curvature": {"decay": 0.8, "floor": 0.5}}
SIGNED = {"sign_momentum": 0.5}


def write_moment_job(folder: Path, step: dict[str, Any], **fields: Any) -> Path:
    """Write a job whose [step] has a table of its own."""
    plain = {name: value for name, value in step.items() if not isinstance(value, dict)}
    tables = {f"step.{name}": value for name, value in step.items() if isinstance(value, dict)}
    return write_job(folder, plain, **fields, **tables)


@pytest.mark.parametrize("step", [CURVED, SIGNED], ids=["curvature", "sign"])
def test_devices_that_are_chosen_now_and_then_follow_by_logs(
    tmp_path: Path, tiny_bundle: Bundle, step: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One of four per round: each catches up over several rounds, moment and all, and ends on the server's adapter."""
    caplog.set_level(logging.WARNING)
    path = write_moment_job(tmp_path, step, rounds=8, min_devices=DEVICES, cohort=1, server_momentum=0.3)
    fitted, _ = load_job(path, tiny_bundle.path)
    done = run_in_process(fitted, tiny_bundle, tmp_path / "server", edge_configs(tmp_path, DEVICES))
    assert done["rounds"] == 8
    assert "replay failed" not in caplog.text
    with closing(Ledger(tmp_path / "server" / LEDGER_FILE, read_only=True)) as ledger:
        closed = queries.closed_rounds(ledger, "job")
    assert len({round_.figures.moment_sha256 for round_ in closed}) == 8
    kept = {path.name for path in (tmp_path / "server" / "blobs").iterdir()}
    moments = [round_.figures.moment_sha256 for round_ in closed]
    assert set(moments[-3:]) <= kept
    assert not set(moments[:-3]) & kept
    plain = write_job(tmp_path, rounds=8, min_devices=DEVICES, cohort=1, server_momentum=0.3)
    other, _ = load_job(plain, tiny_bundle.path)
    (tmp_path / "plain").mkdir()
    found = run_in_process(other, tiny_bundle, tmp_path / "plain", edge_configs(tmp_path / "plain", DEVICES))
    assert found["adapter_sha256"] != done["adapter_sha256"]


def test_a_stopped_server_resumes_with_its_moment(tmp_path: Path, tiny_bundle: Bundle) -> None:
    path = write_moment_job(tmp_path, CURVED, rounds=4, min_devices=DEVICES, min_reports=DEVICES)
    fitted, _ = load_job(path, tiny_bundle.path)
    whole = run_in_process(fitted, tiny_bundle, tmp_path / "whole", edge_configs(tmp_path, DEVICES))
    closed: list[int] = []

    def observe(event: events.Event) -> None:
        if isinstance(event, events.RoundClosed):
            closed.append(event.round)

    again = tmp_path / "again"
    again.mkdir()
    devices = edge_configs(again, DEVICES)
    with pytest.raises(JobError, match="stopped"):
        run_in_process(fitted, tiny_bundle, tmp_path / "cut", devices, observe, lambda: len(closed) >= 2)
    done = run_in_process(fitted, tiny_bundle, tmp_path / "cut", devices)
    assert done["adapter_sha256"] == whole["adapter_sha256"]


@pytest.mark.parametrize("step", [CURVED, SIGNED], ids=["curvature", "sign"])
def test_simulated_devices_keep_the_moment_too(tmp_path: Path, tiny_bundle: Bundle, step: dict[str, Any]) -> None:
    """covey simulate replays every log, checks every hash, and shapes what its devices measure."""
    data = write_rows(reviews(120, 1), tmp_path / "rows.jsonl")
    path = write_moment_job(tmp_path, step, schedule="constant")
    options = SimulateOptions(
        devices=5, rounds=4, cohort=2, over_selection=1.0, drop_out=0.0, bundle=tiny_bundle.path, data=data, job=path
    )
    first = simulate(options)
    assert first is not None
    assert first["rounds"] == 4
    again = simulate(options)
    assert again is not None
    assert again["adapter_sha256"] == first["adapter_sha256"]
    plain = simulate(dataclasses.replace(options, job=write_job(tmp_path, schedule="constant")))
    assert plain is not None
    assert plain["adapter_sha256"] != first["adapter_sha256"]


@pytest.fixture
def bench(tmp_path: Path, tiny_bundle: Bundle) -> Iterator[Bench]:
    with bench_of(tmp_path, tiny_bundle) as made:
        yield made


class Chain:
    """A job's chain with curvature, and the plan of its next round."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.rule = msgspec.structs.replace(RULE, curvature=Curvature(0.8, 0.5))
        self.job = msgspec.structs.replace(JOB, step=self.rule, steps=1, schedule="constant")
        self.chain = AdapterChain(bench.bundle, bench.blobs, [], momentum=False)

    def log(self) -> RoundLog:
        reports = {"pi": TakenReport(pack_scalars(np.array([0.5, -1.5], np.float32)), 12)}
        parameters, index = self.bench.bundle.manifest.parameters, len(self.chain.closed)
        return aggregate(parameters, self.job, index, RoundPlan(2, self.rule), self.chain.base, reports).log

    def close(self) -> None:
        log, blob, terms = self.chain.extend(self.log())
        figures = RoundFigures(2, None, None, None, None, moment_sha256=str(log.result_moment_sha256))
        bytes_ = blob.size_bytes
        closed = ClosedRound(log.round, log.base_sha256, log.result_sha256, blob.sha256, bytes_, terms, None, figures)
        self.chain.advance(closed)

    def plan(self, reference: AdapterRef) -> Any:
        return self.bench.train_plan(reference, rule=self.rule, round=len(self.chain.closed))


def trained(bench: Bench, plan: Any) -> RoundReport:
    """Let a new process of the device do a plan, and return its report."""
    server, agent = bench.hub.join(), bench.agent()
    server.subscribe(bench.topic("report"))
    bench.hub.publish(bench.topic("plan"), encode_message(plan), retain=False)
    for _ in range(8):
        agent.serve_waiting()
    return next(found for found in drain(server) if isinstance(found, RoundReport) and found.round == plan.round)


@pytest.mark.parametrize("lost", ["nothing", "log", "moment", "damaged moment"])
def test_a_device_gets_the_moment_by_replay_or_as_a_file(bench: Bench, lost: str) -> None:
    """Whatever it has lost, its scalars are those along the shaped directions of the server's moment."""
    made = Chain(bench)
    for _ in range(2):
        made.close()
    first = made.chain.reference(None)
    assert first.log is not None
    assert first.log_moment_sha256 is msgspec.UNSET  # it starts in the job's first round
    if lost == "log":
        first = msgspec.structs.replace(first, log=None, log_base_sha256=None)
    report = trained(bench, made.plan(first))
    (kept,) = bench.root.rglob("moments/*")
    assert kept.stem == made.chain.moment_sha256
    if lost == "moment":
        kept.unlink()
    elif lost == "damaged moment":
        kept.write_bytes(b"\0" * kept.stat().st_size)
    made.close()
    second = made.chain.reference(made.chain.closed[-1].base_sha256)
    assert second.log_moment_sha256 == made.chain.closed[-2].figures.moment_sha256
    again = trained(bench, made.plan(second))
    assert again.adapter_sha256 == made.chain.sha256
    assert again.scalars != report.scalars
    assert made.chain.moment_sha256 in {path.stem for path in bench.root.rglob("moments/*")}


def test_a_chain_goes_on_from_its_moment_and_misses_a_damaged_one(bench: Bench) -> None:
    made = Chain(bench)
    for _ in range(3):
        made.close()
    expected = made.chain.extend(made.log())[0]
    resumed = AdapterChain(bench.bundle, bench.blobs, made.chain.closed, momentum=False)
    assert resumed.moment_sha256 == made.chain.moment_sha256
    assert resumed.extend(made.log())[0] == expected
    data = bench.blobs.read(made.chain.closed[-1].log_sha256 or "")
    assert data is not None
    assert decode_chain(data)[0].result_moment_sha256 == resumed.moment_sha256
    path = bench.blobs.path(resumed.moment_sha256 or "")
    assert path is not None
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(JobError, match=r"moment .* is not in the state directory, or damaged"):
        AdapterChain(bench.bundle, bench.blobs, made.chain.closed, momentum=False)


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_device_that_does_not_know_a_switch_is_told_that_it_is_too_old(tiny_bundle: Bundle, switch: str) -> None:
    values = {"keep_directions": 1, "curvature": Curvature(), "sign_momentum": 0.9}
    rule = StepRule(**{switch: values[switch]})  # type: ignore[arg-type]
    birth = birth_of("pi", FORWARD_ONLY)
    found = why_too_old(tiny_bundle.manifest, birth, rule)
    assert found is not None
    assert f"does not know {switch} of the job's [step]" in found
    knows = msgspec.structs.replace(birth, methods=["spzo", *SWITCHES])
    assert why_too_old(tiny_bundle.manifest, knows, rule) is None
    assert why_too_old(tiny_bundle.manifest, birth, StepRule()) is None


def test_what_cannot_be_combined_with_a_moment_is_refused(tmp_path: Path, tiny_bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="stld"):
        read_job(write_moment_job(tmp_path, CURVED, stld={}))
    with pytest.raises(ConfigError, match="only one"):
        read_job(write_moment_job(tmp_path, {**CURVED, **SIGNED}))
    with pytest.raises(ConfigError, match="floor"):
        read_job(write_moment_job(tmp_path, {"curvature": {"floor": 0}}))
    job = read_job(write_moment_job(tmp_path, CURVED))
    full = msgspec.structs.replace(tiny_bundle.manifest, lora=None)
    with pytest.raises(ConfigError, match="second vector as large as the model"):
        fit_to_bundle(job, full, tiny_bundle.sha256)
    assert adapter_sha256(tiny_bundle.initial_adapter()) == tiny_bundle.initial_sha256
