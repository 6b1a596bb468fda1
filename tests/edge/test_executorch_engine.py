"""The ExecuTorch engine: parity with PyTorch and ONNX Runtime, bad input, no torch on the device."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from executorch_cases import BOTH, CAUSAL, HEAD, PROMPT, batch_of
from fleets import write_job
from tiny_models import reviews, write_rows
from wheels import copied_sources

from edge_runtime.agent.config import EdgeConfig
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.batch import pad
from edge_runtime.data.examples import DataConfig
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.executorch_build import VERSION, compile_library, find_sdk, standalone
from edge_runtime.engines.golden import check_golden, golden_adapter
from edge_runtime.errors import BundleError, ConfigError, TrainingError
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule
from server.serving.loaded_job import load_job
from server.simulation.in_process import run_in_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.data.batch import Batch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("executorch") is None, reason="needs the executorch package: pip install covey[executorch]"
)
FAST = [("bert", HEAD)]
LONG = [
    *[(kind, HEAD) for kind in ("deberta", "distilbert", "mpnet", "roberta")],
    ("roberta-mlm", PROMPT),
    *[(kind, PROMPT) for kind in ("llama", "opt", "qwen2-tied", "qwen3")],
    *[(kind, CAUSAL) for kind in ("opt", "llama", "qwen2")],
]
CASES = [*FAST, *[pytest.param(*case, marks=[pytest.mark.long, pytest.mark.timeout(1200)]) for case in LONG]]


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_engines_agree(tiny_export: Callable[..., Bundle], kind: str, task: str) -> None:
    """PyTorch eager = ExecuTorch on the golden vectors; a step's scalars as on ONNX Runtime; no product on slow kernels
    (the export refuses that)."""
    levels = (1,) if (kind, task) in FAST else ()  # one export for all tests
    bundle = tiny_export(kind, task=task, splits=(2,), levels=levels, runtimes=BOTH)
    parity = check_golden(bundle, Engines("executorch", 1))
    assert parity.loss <= 1e-5
    assert parity.logits <= 1e-5
    theta = golden_adapter(bundle.initial_adapter(), bundle.manifest.golden)
    rule = StepRule(front_perturbations=2, back_perturbations=2, eps=0.05)
    seeds, batch = step_seeds(rule, 1, 0, "device", 0), batch_of(bundle)
    steps = [spzo_step(Engines(runtime, 1).make_engine(bundle, 2), theta, batch, rule, seeds) for runtime in BOTH]
    scalars = [np.asarray(step.scalars) for step in steps]
    assert np.abs(scalars[0]).max() > 1e-3  # the comparison is about something
    assert np.abs(scalars[0] - scalars[1]).max() <= 1e-3 * np.abs(scalars[0]).max()


@pytest.fixture(scope="session")
def bundle(tiny_export: Callable[..., Bundle]) -> Bundle:
    return tiny_export("bert", splits=(2,), levels=(1,), runtimes=BOTH)  # the same in other tests


@pytest.fixture
def spoilt(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy that a test may spoil."""
    shutil.copytree(bundle.path, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def test_no_file_that_was_altered_reaches_executorch(spoilt: Bundle) -> None:
    """1,000 mutations: bits, bytes, lengths; none passes its hash, so none can crash the process."""
    from edge_runtime.engines.executorch_engine import open_graph

    graph = spoilt.manifest.graph("predict", runtime="executorch")
    path = spoilt.file(graph.file)
    good = path.read_bytes()
    rng = np.random.Generator(np.random.PCG64(1))
    for n in range(1000):
        bad = bytearray(good)
        if n % 4 == 0:
            del bad[int(rng.integers(len(bad))) :]
        elif n % 4 == 1:
            bad += rng.bytes(int(rng.integers(1, 100)))
        else:
            for place in rng.integers(len(bad), size=int(rng.integers(1, 20))):
                bad[place] ^= int(rng.integers(1, 256))
        if bytes(bad) == good:
            continue
        path.write_bytes(bad)
        with pytest.raises(BundleError, match=r"altered|cannot read"):
            open_graph(spoilt, graph)
    path.write_bytes(good)
    assert open_graph(spoilt, graph).inputs == len(graph.inputs)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: data[: len(data) // 2], "InvalidProgram|InvalidExternalData|AccessFailed|InvalidArgument"),
        (lambda data: data[:40], "InvalidProgram|InvalidExternalData|AccessFailed|InvalidArgument"),
        (lambda _: b"not a graph" * 100, "InvalidProgram.*expected 'ET12'"),
        (lambda data: data[:4] + b"ET99" + data[8:], "InvalidProgram.*'ET99' != expected 'ET12'"),
        (lambda data: data.replace(b"XnnpackBackend", b"XnnpackBackenD"), "needs the delegate XnnpackBackenD"),
    ],
)
def test_what_executorch_refuses_is_an_error_that_says_why(
    bundle: Bundle, spoil: Callable[[bytes], bytes], said: str, tmp_path: Path
) -> None:
    """Behind the hash: truncated files, another version, a delegate that is not there."""
    from edge_runtime.engines.executorch_library import ExecutorchError, GraphFile

    graph = bundle.manifest.graph("predict", runtime="executorch")
    (tmp_path / "bad.pte").write_bytes(spoil(bundle.file(graph.file).read_bytes()))
    with pytest.raises(ExecutorchError, match=said):
        GraphFile(tmp_path / "bad.pte")


def test_batches_that_do_not_fit_are_errors(bundle: Bundle) -> None:
    from edge_runtime.engines.executorch_library import ExecutorchError

    theta, predictor = bundle.initial_adapter(), Engines("executorch", 1).make_predictor(bundle)
    with pytest.raises(TrainingError, match=r"17 rows; .* up to 16"):
        predictor.logits(theta, pad([[5, 6]] * 17, [0] * 17, 0))
    with pytest.raises(TrainingError, match=r"33 tokens; .* up to 32"):
        predictor.logits(theta, pad([[5] * 33], [0], 0))
    with pytest.raises(TrainingError, match="ExecuTorch failed on a batch of 1 × 2 tokens"):
        predictor.logits(theta, pad([[10_000, 3]], [0], 0))
    # An error leaves the graph as it was, or closes it for good: never a wrong answer, never the end of the process.
    file = open_file(bundle)
    with pytest.raises(ExecutorchError, match=r"InvalidState.*input 0 is not bound"):
        file.run()
    with pytest.raises(ExecutorchError, match="input 0 has sizes"):
        file.bind(0, np.zeros((1, 2, 3), dtype=file.input(0)[0]))
    with pytest.raises(TypeError, match="contiguous array of float32"):
        file.bind(0, np.zeros(32, dtype=np.float64))


def test_the_largest_batch_is_taken_and_one_row_more_is_named(bundle: Bundle) -> None:
    """Front, back, predict and training: rows, tokens, and the flag of the export that takes more of them."""
    theta, makes = bundle.initial_adapter(), Engines("executorch", 1)
    engine, training, predictor = (
        makes.make_engine(bundle, 2),
        makes.make_training_engine(bundle),
        makes.make_predictor(bundle),
    )
    runs: list[Callable[[Batch], object]] = [
        lambda batch: engine.back(engine.front(batch), batch),
        lambda batch: predictor.logits(theta, batch),
        lambda batch: training.gradients(theta, [0], batch, np.zeros_like(theta)),
    ]
    for run in runs:
        run(pad([[5 + n % 7] * 32 for n in range(16)], [0] * 16, 0))
        with pytest.raises(TrainingError, match=r"17 rows; .* up to 16") as rows:
            run(pad([[5, 6]] * 17, [0] * 17, 0))
        assert rows.value.hint.endswith("export with --max-batch 17")
        with pytest.raises(TrainingError, match=r"33 tokens; .* up to 32") as tokens:
            run(pad([[5] * 33], [0], 0))
        assert tokens.value.hint.endswith("export with --max-tokens 33")


def open_file(bundle: Bundle) -> Any:
    from edge_runtime.engines.executorch_engine import open_graph

    return open_graph(bundle, bundle.manifest.graph("predict", runtime="executorch"))


def test_a_boundary_outlives_the_next_run(bundle: Bundle) -> None:
    """The step keeps y⁺ while it computes y⁻: one must not overwrite the other."""
    engine, batch = Engines("executorch", 1).make_engine(bundle, 2), batch_of(bundle)
    engine.back_workspace[:] = bundle.initial_adapter()[engine.front_workspace.size :] + np.float32(0.1)
    engine.front_workspace[:] = 0.0
    first = engine.front(batch)
    before = engine.back_outputs(first, batch)["logits"]
    engine.front_workspace[:] = 0.5
    second = engine.front(batch)
    assert np.array_equal(engine.back_outputs(first, batch)["logits"], before)
    assert not np.array_equal(engine.back_outputs(second, batch)["logits"], before)


def test_a_bundle_without_graphs_for_the_engine_says_so(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no graphs for executorch, only for onnxruntime"):
        Engines("executorch").make_engine(tiny_bundle, 2)


def test_a_mixed_fleet_agrees(bundle: Bundle, tmp_path: Path) -> None:
    """Devices on both engines in the same rounds; each proves the server's adapter by its hash."""
    configs = []
    for index in range(4):
        data = DataConfig(str(write_rows(reviews(8 + index, seed=index), tmp_path / f"{index}.jsonl")))
        configs.append(
            EdgeConfig(
                name=f"device-{index}",
                broker="mqtt://unused",
                data=data,
                threads=1,
                state_dir=str(tmp_path / f"device-{index}"),
                engine="executorch" if index % 2 else "onnxruntime",
            )
        )
    fitted, _ = load_job(write_job(tmp_path, rounds=3, min_devices=4, eval_every=3), bundle.path)
    result = run_in_process(fitted, bundle, tmp_path / "server", configs)
    assert result["rounds"] == 3


def test_the_device_runs_it_without_torch(bundle: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from edge_runtime.bundle.folder import open_bundle; from edge_runtime.engines.golden import check_golden\n"
        "from edge_runtime.engines.choose import Engines\n"
        f"print(check_golden(open_bundle(Path({str(bundle.path)!r})), Engines('executorch', 1)).loss < 1e-5)\n"
        "print([n for n in ('torch', 'onnxruntime', 'executorch') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["True", "[]"]


def test_without_a_compiler_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no C\\+\\+ compiler") as caught:
        compile_library(find_sdk(), tmp_path / "x.so", compiler="no-such-compiler")
    assert "apt install g++" in caught.value.hint
    with pytest.raises(ConfigError, match=r"has no libexecutorch.so"):
        compile_library(tmp_path, tmp_path / "x.so")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_bare_environment_has_a_working_engine(bundle: Bundle, tmp_path: Path) -> None:
    """As on a board: covey's wheel, and executorch's without its Python dependencies. No torch anywhere."""
    pip = [sys.executable, "-m", "pip"]
    source = copied_sources(tmp_path)
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("covey-*.whl")
    for arguments in ([str(wheel)], ["--no-deps", f"executorch=={VERSION}"]):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *arguments], check=True)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    edge = [python, "-m", "edge_runtime.cli"]
    for command in (["doctor", "--build"], ["bundle", "verify", str(bundle.path), "--engine", "executorch"]):
        done = subprocess.run([*edge, *command], capture_output=True, text=True, check=False, env=environment, cwd="/")
        assert done.returncode == 0, done.stderr + done.stdout
    code = "import importlib.util as u; print([n for n in ('torch', 'torchao', 'pandas') if u.find_spec(n)])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_a_standalone_folder_is_small(tmp_path: Path) -> None:
    assert standalone(tmp_path / "engine", find_sdk()) < 20e6
