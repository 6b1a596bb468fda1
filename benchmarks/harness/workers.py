"""The workers of the benchmarks: each is one process with one kind of work; see measure.Worker."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_runtime.bundle.folder import open_bundle
from edge_runtime.data.batch import Batch
from edge_runtime.device.memory import peak_rss_bytes
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.manifest import Runtime

Work = dict[str, "Callable[[], Any]"]


def random_batch(settings: dict[str, Any], vocab_size: int = 2000) -> Batch:
    """Return rows without padding: every token counts."""
    rng = np.random.Generator(np.random.PCG64(1))
    shape = (settings["rows"], settings["tokens"])
    return Batch(rng.integers(1000, vocab_size, shape), np.ones(shape, np.int64), rng.integers(0, 2, shape[0]))


def rule_of(settings: dict[str, Any]) -> StepRule:
    """Return the step's rule."""
    return StepRule(
        front_perturbations=settings["p1"], back_perturbations=settings["p2"], eps=settings.get("eps", 1e-2)
    )


def step(settings: dict[str, Any]) -> Work:
    """``run``: an SPZO step. ``forwards``: as many bare runs of the same sessions, nothing perturbed."""
    from edge_runtime.engines.choose import Engines

    bundle, batch, rule = open_bundle(Path(settings["bundle"])), random_batch(settings), rule_of(settings)
    engine = Engines(threads=settings["threads"]).make_engine(bundle, settings["split"])
    theta = bundle.initial_adapter()
    counter = iter(range(10**9))

    def forwards() -> None:
        for _ in range(rule.front_perturbations):
            boundaries = [engine.front(batch), engine.front(batch)]
            for _ in range(rule.back_perturbations):
                for boundary in boundaries:
                    engine.back(boundary, batch)

    return {
        "run": lambda: spzo_step(engine, theta, batch, rule, step_seeds(rule, 0, 0, "d", next(counter))),
        "forwards": forwards,
    }


def inference(settings: dict[str, Any]) -> Work:
    """``run``: a prediction for a batch."""
    from edge_runtime.engines.choose import Engines

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    predictor, theta = Engines(threads=settings["threads"]).make_predictor(bundle), bundle.initial_adapter()
    return {"run": lambda: predictor.logits(theta, batch)}


def inference_in_memory(settings: dict[str, Any]) -> Work:
    """``run``: the same with the weights read into memory, as runtimes do that do not map them."""
    from edge_runtime.engines.choose import Engines

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    predictor, theta = Engines(threads=settings["threads"]).make_predictor(bundle), np.array(bundle.initial_adapter())
    return {"run": lambda: predictor.logits(theta, batch)}


def train_round(settings: dict[str, Any]) -> Work:
    """``run``: a training round of some steps on rows of one length, as a device does it."""
    from edge_runtime.data.rows import EncodedRows
    from edge_runtime.engines.choose import Engines
    from edge_runtime.forward_only.round import RoundSettings
    from edge_runtime.forward_only.round import train_round as train

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    engine = Engines(threads=settings["threads"]).make_engine(bundle, settings["split"])
    rows = EncodedRows(batch.input_ids.tolist() * 4, batch.labels.tolist() * 4, 0)
    work = RoundSettings(0, 0, "d", rule_of(settings), steps=4, batch_size=settings["rows"], mean_square=None)
    theta = bundle.initial_adapter()
    return {"run": lambda: train(engine, theta, rows, work)}


def blocks_onnxruntime(settings: dict[str, Any]) -> Work:
    """``run``: front and back once, on ONNX Runtime."""
    return _blocks("onnxruntime", settings)


def blocks_executorch(settings: dict[str, Any]) -> Work:
    """``run``: the same on ExecuTorch."""
    return _blocks("executorch", settings)


def _blocks(runtime: Runtime, settings: dict[str, Any]) -> Work:
    from edge_runtime.engines.choose import Engines

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    engine, theta = (
        Engines(runtime, settings["threads"]).make_engine(bundle, settings["split"]),
        bundle.initial_adapter(),
    )
    engine.front_workspace[:] = theta[: engine.front_workspace.size]
    engine.back_workspace[:] = theta[engine.front_workspace.size :]
    return {"run": lambda: engine.back(engine.front(batch), batch)}


def load_executorch(settings: dict[str, Any]) -> Work:
    """``first_load``: library, both graphs and the weights' mapping, once a process; nothing is loaded before."""
    from edge_runtime.engines.choose import Engines

    bundle, made = open_bundle(Path(settings["bundle"])), []

    def first_load() -> float:
        started = time.perf_counter()
        made.append(Engines("executorch", settings["threads"]).make_engine(bundle, settings["split"]))
        return time.perf_counter() - started

    seconds = first_load()
    return {"first_load": lambda: seconds}


def matmuls(settings: dict[str, Any]) -> Work:
    """``run``: the matrix products of a prediction alone: same shapes, same library, same threads."""
    import onnx
    import onnxruntime as ort

    shapes = product_shapes(settings)
    nodes, inputs, outputs, feeds = [], [], [], {}
    rng = np.random.Generator(np.random.PCG64(0))
    for index, sides in enumerate(shapes):
        for side, shape in zip("ab", sides, strict=True):
            inputs.append(onnx.helper.make_tensor_value_info(f"{side}{index}", onnx.TensorProto.FLOAT, shape))
            value = rng.standard_normal(shape, dtype=np.float32)
            feeds[f"{side}{index}"] = ort.OrtValue.ortvalue_from_numpy(value)
        nodes.append(onnx.helper.make_node("MatMul", [f"a{index}", f"b{index}"], [f"y{index}"]))
        outputs.append(onnx.helper.make_tensor_value_info(f"y{index}", onnx.TensorProto.FLOAT, None))
    graph = onnx.helper.make_graph(nodes, "products", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings["threads"]
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in outputs]
    return {"run": lambda: session.run_with_ort_values(names, feeds)}


def product_shapes(settings: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Return the operand shapes of every matrix product of a prediction, as ONNX Runtime's profile shows them."""
    import tempfile

    import onnx
    import onnxruntime as ort

    from edge_runtime.engines.choose import Engines

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    with tempfile.TemporaryDirectory() as folder:
        optimized = f"{folder}/optimized.onnx"
        original = ort.SessionOptions

        def profiled() -> ort.SessionOptions:
            options = original()
            options.enable_profiling = True
            options.profile_file_prefix = f"{folder}/profile"
            options.optimized_model_filepath = optimized
            return options

        ort.SessionOptions = profiled
        try:
            predictor = Engines(threads=settings["threads"]).make_predictor(bundle)
        finally:
            ort.SessionOptions = original
        predictor.logits(bundle.initial_adapter(), batch)
        session = predictor._runner._session  # noqa: SLF001 the profile is the session's
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = {node.name: node for node in onnx.load(optimized).graph.node}
    shapes = []
    for event in events:
        name = event["name"].removesuffix("_kernel_time")
        if not event["name"].endswith("_kernel_time") or name not in nodes:
            continue
        node = nodes[name]
        if node.op_type not in ("MatMul", "FusedMatMul", "Gemm"):
            continue
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        sides = [next(iter(side.values())) for side in event["args"]["input_type_shape"][:2]]
        for index, flag in enumerate(("transA", "transB")):
            if flags.get(flag):
                sides[index] = [*sides[index][:-2], sides[index][-1], sides[index][-2]]
        if flags.get("transBatchA") or flags.get("transBatchB"):
            raise SystemExit(f"{name}: a product with transposed batch dimensions is not understood here")
        shapes.append((sides[0], sides[1]))
    return shapes


def torch_mezo(settings: dict[str, Any]) -> Work:
    """``run``: a MeZO step in PyTorch: perturb in place with torch.normal, forward, turn back, update.

    As in the MeZO paper's Algorithm 1, on the same trainable tensors; as many full forwards as the SPZO step's cost.
    """
    import torch

    from benchmarks.harness.model_files import file_name
    from export.finished import load_finished, untrained

    torch.set_num_threads(settings["threads"])
    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    trained = {p.name for p in bundle.manifest.parameters}
    if bundle.manifest.train == "full":
        model = untrained(bundle.file("adapter"), Path(settings["model_dir"]))
    else:
        model = load_finished(bundle.file("adapter"), Path(settings["model_dir"]))
    parameters = [p for name, p in model.named_parameters() if file_name(name) in trained]
    if sum(p.numel() for p in parameters) != bundle.manifest.parameters[-1].stop:
        raise SystemExit("MeZO would train other tensors than SPZO")
    arrays = (batch.input_ids, batch.attention_mask, batch.labels)
    input_ids, attention_mask, labels = (torch.from_numpy(array) for array in arrays)

    def shift(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.data.add_(torch.normal(0.0, 1.0, size=parameter.shape), alpha=scale)

    def loss() -> float:
        return float(torch.nn.functional.cross_entropy(model(input_ids, attention_mask), labels))

    def run() -> None:
        with torch.inference_mode():
            for seed in range(settings["mezo_directions"]):
                shift(seed, 1e-2)
                plus = loss()
                shift(seed, -2e-2)
                minus = loss()
                shift(seed, 1e-2)
                shift(seed, -1e-6 * (plus - minus))

    return {"run": run}


def gradients(settings: dict[str, Any]) -> Work:
    """``run``: loss and gradients with ``level`` active layers. ``half``: with ``half`` of them."""
    work = levels(settings)
    whole, half = (work[str(settings[key])] for key in ("level", "half"))
    return {"run": whole} if half is whole else {"run": whole, "half": half}  # one level alone, for its memory


def micro_batches(settings: dict[str, Any]) -> Work:
    """``run``: loss and gradients with ``level`` active layers, a quarter of the rows at a time."""
    quarter = levels(settings | {"rows": max(1, settings["rows"] // 4)})[str(settings["level"])]

    def run() -> None:
        for _ in range(4):
            quarter()

    return {"run": run}


def levels(settings: dict[str, Any]) -> Work:
    """By a level's number: loss and gradients at it."""
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.golden import training_layers

    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    engine, theta = Engines(threads=settings["threads"]).make_training_engine(bundle), bundle.initial_adapter()
    out, layers = np.zeros_like(theta), bundle.manifest.model.layers

    def at(level: int) -> Callable[[], float]:
        return lambda: engine.gradients(theta, training_layers(level, layers), batch, out)

    return {str(level): at(level) for level in engine.levels}


def all_levels(settings: dict[str, Any]) -> Work:
    """``run``: every level of a bundle, up and down."""
    work = list(levels(settings).values())

    def run() -> None:
        for at_level in (*work, *reversed(work)):
            at_level()

    return {"run": run}


def libraries(settings: dict[str, Any]) -> Work:
    """``run``: nothing, in a process that has loaded what training needs."""
    from edge_runtime.engines import onnx_engine as _engine

    random_batch(settings)
    return {"run": lambda: _engine}


def torch_lora(settings: dict[str, Any]) -> Work:
    """``run``: loss and gradients in PyTorch of the same trained tensors, all layers."""
    import torch

    from benchmarks.harness.model_files import file_name
    from export.finished import load_finished

    torch.set_num_threads(settings["threads"])
    bundle, batch = open_bundle(Path(settings["bundle"])), random_batch(settings)
    trained = {p.name for p in bundle.manifest.parameters}
    model = load_finished(bundle.file("adapter"), Path(settings["model_dir"]))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(file_name(name) in trained)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if sum(p.numel() for p in parameters) != bundle.manifest.parameters[-1].stop:
        raise SystemExit("PyTorch would train other tensors")
    arrays = (batch.input_ids, batch.attention_mask, batch.labels)
    input_ids, attention_mask, labels = (torch.from_numpy(array) for array in arrays)

    def run() -> None:
        loss = torch.nn.functional.cross_entropy(model(input_ids, attention_mask), labels)
        torch.autograd.grad(loss, parameters)

    return {"run": run}


KINDS = {
    "gradients": gradients,
    "micro_batches": micro_batches,
    "levels": levels,
    "all_levels": all_levels,
    "libraries": libraries,
    "torch_lora": torch_lora,
    "step": step,
    "inference": inference,
    "inference_in_memory": inference_in_memory,
    "train_round": train_round,
    "blocks_onnxruntime": blocks_onnxruntime,
    "blocks_executorch": blocks_executorch,
    "load_executorch": load_executorch,
    "matmuls": matmuls,
    "torch_mezo": torch_mezo,
}


def main() -> None:
    """Get ready, then do the work whenever a line comes in."""
    work = KINDS[sys.argv[1]](json.loads(sys.argv[2]))
    for run in work.values():
        run()
    print("{}", flush=True)
    for line in sys.stdin:
        started, cpu_started = time.perf_counter(), time.process_time()
        measured = work[line.strip()]()
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        if line.strip() == "first_load":
            seconds = measured  # what was measured when the process began
        memory = {"peak_rss_mb": peak_rss_bytes() / 1e6, "anonymous_mb": _status_mb("RssAnon"), "code_mb": _code_mb()}
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, **memory}), flush=True)


def _code_mb() -> float:
    """Return the resident pages of files that hold no tensors: the interpreter's and the libraries'."""
    tensors, is_tensors = 0.0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # a mapping begins
            is_tensors = words[-1].endswith(".safetensors")
        elif is_tensors and words[0] == "Rss:":
            tensors += int(words[1]) * 1024 / 1e6
    return _status_mb("RssFile") - tensors


def _status_mb(field: str) -> float:
    """Return a figure of this process; ``RssAnon`` is what cannot be dropped and read again."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
