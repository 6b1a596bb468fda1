"""``covey-edge``: the commands of a device. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime import __version__, output
from edge_runtime.bundle.manifest import CAUSAL_LM
from edge_runtime.commands.profile_command import add_profile_command
from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.agent.config import DataConfig
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.bundle.manifest import Runtime, Task
    from edge_runtime.perturbation.perturb import FloatVector


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``covey-edge``; returns the exit code (errors.py lists them)."""
    return output.main(_parser(), argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="covey-edge",
        description="Train and predict on this device. The data stays here; only scalars leave.",
        epilog="Exit codes: 0 done, 2 usage, 3 configuration, 4 data, 5 bundle, 6 protocol, 7 network, 8 storage, "
        "9 training.",
    )
    parser.add_argument("--version", action="version", version=f"covey-edge {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="join the fleet and train when asked", description=_run.__doc__)
    run.add_argument("--config", type=Path, required=True, metavar="edge.toml")
    run.add_argument("--until-finished", action="store_true", help="end when a job's final adapter is here")
    output.add_format(run)
    run.set_defaults(run=_run)

    predict = commands.add_parser(
        "predict", help="classify or continue texts with the current adapter", description=_predict.__doc__
    )
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="edge.toml", help="use the device's current bundle and adapter")
    source.add_argument("--bundle", type=Path, help="use this bundle")
    predict.add_argument("--adapter", type=Path, help="with --bundle: an adapter file (default: the bundle's own)")
    predict.add_argument("--shared", action="store_true", help="with --config: leave the device's personal layers out")
    predict.add_argument("--threads", type=int, default=0, help="threads of one operator (default: one a core)")
    _add_engine(predict, None)
    predict.add_argument(
        "--max-new-tokens", type=int, default=16, help="causal-lm: continue by so many (default: %(default)s)"
    )
    predict.add_argument("text", nargs="+", help="texts to classify; causal-lm: prompts to continue")
    output.add_format(predict)
    predict.set_defaults(run=_predict)

    data = commands.add_parser("data", help="look at the private rows").add_subparsers(required=True, metavar="COMMAND")
    check = data.add_parser("check", help="check every row, line by line", description=_data_check.__doc__)
    check.add_argument("--config", type=Path, metavar="edge.toml", help="take file and fields from the configuration")
    check.add_argument("--data", type=Path, help="the file (.jsonl or .csv), instead of the configuration's")
    check.add_argument("--bundle", type=Path, help="take the labels from this bundle, and count tokens")
    check.add_argument("--labels", help="the labels, separated by commas, where there is no bundle yet")
    check.add_argument(
        "--task", choices=("classify", CAUSAL_LM), default="classify", help="what the rows are for, without a bundle"
    )
    check.add_argument("--text-field", help="field with the text (default: text)")
    check.add_argument("--label-field", help="field with the label (default: label)")
    check.add_argument("--prompt-field", help="causal-lm: field with the prompt (default: prompt)")
    check.add_argument("--completion-field", help="causal-lm: field with the completion (default: completion)")
    output.add_format(check)
    check.set_defaults(run=_data_check)

    add_profile_command(commands)
    doctor = commands.add_parser(
        "doctor", help="what this device has and can reach, and what to do", description=_doctor.__doc__
    )
    doctor.add_argument("--config", type=Path, metavar="edge.toml", help="look at its broker, server and data too")
    doctor.add_argument("--build", action="store_true", help="compile the ExecuTorch engine if that is not done yet")
    output.add_format(doctor)
    doctor.set_defaults(run=_doctor)

    add_bundle_commands(commands)
    return parser


def add_bundle_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``bundle verify``, which ``covey`` and ``covey-edge`` share."""
    bundle = commands.add_parser("bundle", help="look at bundles").add_subparsers(required=True, metavar="COMMAND")
    verify = bundle.add_parser("verify", help="check a bundle", description=_bundle_verify.__doc__)
    verify.add_argument("bundle", type=Path)
    verify.add_argument("--threads", type=int, default=0, help="threads of one operator (default: one a core)")
    _add_engine(verify, "onnxruntime")
    output.add_format(verify)
    verify.set_defaults(run=_bundle_verify)


def _add_engine(parser: argparse.ArgumentParser, default: Runtime | None) -> None:
    parser.add_argument(
        "--engine",
        choices=("onnxruntime", "executorch"),
        default=default,
        help=f"what runs the graphs (default: {default or 'the configured one'})",
    )


def _run(args: argparse.Namespace) -> int:
    """Join the fleet: announce, take plans, train on the local rows, report scalars, prove the adapter by hash."""
    from edge_runtime.agent.agent import Agent
    from edge_runtime.agent.announcer import lost_will
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.device.gate import Gate, board_conditions
    from edge_runtime.network.mqtt import MqttTransport, parse_broker
    from edge_runtime.perturbation.kernel import kernel
    from edge_runtime.store.store import Store

    config = read_edge_config(args.config)
    if not Path(config.data.path).is_file():
        raise ConfigError(f"no data file at {config.data.path}", "set [data] path in the configuration")
    kernel()  # a wrong COVEY_KERNEL is said now, not in the first round
    store = Store(Path(config.state_dir))
    gate = Gate(config.eligibility, board_conditions(store.root))  # rules that cannot be are said now too
    boot_id = os.urandom(8).hex()
    transport = MqttTransport(
        parse_broker(config.broker),
        f"covey-{config.fleet}-{config.name}",
        will=lost_will(config, boot_id),
        tls=config.tls,
        connect_timeout_s=config.connect_timeout_s,
    )
    agent = Agent(config, store, transport, boot_id, gate=gate)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        finished = agent.run(until_finished=args.until_finished, should_stop=stop.is_set)
    finally:
        transport.close(agent.goodbye())
    if finished is not None:
        result = {"job": finished.job, "adapter_sha256": finished.adapter_sha256}
        output.emit(args, result, f"job {finished.job} is finished; adapter {finished.adapter_sha256}")
    return 0


def _predict(args: argparse.Namespace) -> int:
    """Classify texts: label, and the probability of every label. causal-lm: continue prompts, greedily."""
    from edge_runtime.engines.predict import complete, predict

    bundle, theta, engine = _predict_source(args)
    if bundle.manifest.task.kind == CAUSAL_LM:
        made = complete(bundle, theta, args.text, args.max_new_tokens, args.threads, engine)
        continued = [{"prompt": c.prompt, "completion": c.completion} for c in made]
        values = {"bundle_sha256": bundle.sha256, "predictions": continued}
        output.emit(args, values, "\n".join(f"{c.prompt}{c.completion}" for c in made))
        return 0
    predictions = predict(bundle, theta, args.text, args.threads, engine)
    text = "\n".join(f"{p.label}\t{p.probabilities[p.label]:.3f}\t{p.text}" for p in predictions)
    rows = [{"text": p.text, "label": p.label, "probabilities": p.probabilities} for p in predictions]
    output.emit(args, {"bundle_sha256": bundle.sha256, "predictions": rows}, text)
    return 0


def _predict_source(args: argparse.Namespace) -> tuple[Bundle, FloatVector, Runtime]:
    """Return the bundle, the adapter, and the engine that was asked for, or is configured."""
    from edge_runtime.bundle.folder import open_bundle
    from edge_runtime.bundle.layout import total_size
    from edge_runtime.forward_only.replay_file import check_finite, map_adapter

    folder, adapter, engine = args.bundle, args.adapter, args.engine
    if args.config is not None:
        from edge_runtime.agent.agent import current_adapter
        from edge_runtime.agent.config import read_edge_config
        from edge_runtime.store.store import Store

        config = read_edge_config(args.config)
        engine = engine or config.engine
        store = Store(Path(config.state_dir))
        current = current_adapter(store)
        if current is None:
            raise ConfigError("this device has no adapter yet", "let it take part in a round, or give --bundle")
        folder, adapter = current
    bundle = open_bundle(folder)
    if adapter is None:
        return bundle, bundle.initial_adapter(), engine or "onnxruntime"
    try:
        adapter.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {adapter}: {error.strerror}", "give an adapter file") from error
    theta = map_adapter(adapter, total_size(bundle.manifest.parameters))
    check_finite(theta)
    if args.config is not None and not args.shared:
        from edge_runtime.store.personal import load_personal, with_personal

        journal = store.journal()
        theta = with_personal(theta, load_personal(store, journal.personal_sha256, bundle, journal.job or ""), bundle)
    return bundle, theta, engine or "onnxruntime"


def _data_check(args: argparse.Namespace) -> int:
    """Check every row and say which lines are wrong; with a bundle, also how many tokens the rows have."""
    import msgspec

    from edge_runtime.agent.config import DataConfig, read_edge_config

    config = read_edge_config(args.config).data if args.config else DataConfig(path="")
    fields = ("text_field", "label_field", "prompt_field", "completion_field")
    config = msgspec.structs.replace(
        config, path=str(args.data or config.path), **{f: getattr(args, f) for f in fields if getattr(args, f)}
    )
    if not config.path:
        raise ConfigError("no file to check", "give --config edge.toml or --data FILE")
    task = _task_of(args)
    rows, counts = _checked_rows(args, config, task)
    result: dict[str, object] = {"path": config.path, "rows": rows} | ({} if counts is None else {"labels": counts})
    lines = [f"{config.path}: {rows} rows, all good"]
    lines += [f"  {label}: {count}" for label, count in (counts or {}).items()]
    if task is not None:
        from edge_runtime.bundle.folder import open_bundle
        from edge_runtime.data.rows import load_rows

        lengths = sorted(len(ids) for ids in load_rows(open_bundle(args.bundle), config).tokens)
        median, longest = lengths[len(lengths) // 2], lengths[-1]
        cut = sum(length >= task.max_tokens for length in lengths)
        result |= {"tokens_median": median, "tokens_max": longest, "rows_at_max_tokens": cut}
        lines.append(f"  tokens: median {median}, longest {longest}; {cut} rows reach the limit of {task.max_tokens}")
    output.emit(args, result, "\n".join(lines))
    return 0


def _checked_rows(args: argparse.Namespace, data: DataConfig, task: Task | None) -> tuple[int, dict[str, int] | None]:
    """Return how many rows there are, and how many of each label; None where the task has no labels."""
    from edge_runtime.data.examples import label_counts, read_completions, read_rows

    if (args.task if task is None else task.kind) == CAUSAL_LM:
        return len(read_completions(Path(data.path), data.prompt_field, data.completion_field)), None
    labels = task.labels if task is not None else [label.strip() for label in (args.labels or "").split(",")]
    if len(labels) < 2:
        raise ConfigError("the labels are not known", "give --bundle BUNDLE or --labels A,B")
    rows = read_rows(Path(data.path), labels, data.text_field, data.label_field)
    return len(rows), label_counts(rows, labels)


def _doctor(args: argparse.Namespace) -> int:
    """Check engines, memory, sensors, clock, data, broker and server. Exit code 0, or that of the first problem."""
    import time

    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.commands.doctor import examine

    config = read_edge_config(args.config) if args.config else None
    findings = list(examine(config, time.time, build=args.build))
    checks = [
        {"check": f.check, "status": f.status, "found": f.found, "advice": f.advice, **f.values} for f in findings
    ]
    rows = [(f.check, f.status, f.found + (f"\n{'':25}→ {f.advice}" if f.advice else "")) for f in findings]
    text = "\n".join(f"{check:13} {status:9} {found}" for check, status, found in rows)
    problems = [f for f in findings if f.status == "problem"]
    output.emit(args, {"healthy": not problems, "checks": checks}, text)
    return problems[0].exit_code if problems else 0


def _task_of(args: argparse.Namespace) -> Task | None:
    from edge_runtime.bundle.manifest import read_manifest

    return read_manifest(args.bundle)[0].task if args.bundle else None


def _bundle_verify(args: argparse.Namespace) -> int:
    """Check hashes of all files, the layout, and the golden vectors against what PyTorch gave."""
    from edge_runtime.bundle.folder import open_bundle, verify_files
    from edge_runtime.engines.golden import check_golden
    from edge_runtime.perturbation.kernel import kernel_name, kernel_reason

    bundle = open_bundle(args.bundle)
    verify_files(bundle)
    parity = check_golden(bundle, args.threads, args.engine)
    manifest = bundle.manifest
    result = {
        "bundle_sha256": bundle.sha256,
        "files": len(manifest.files),
        "size_bytes": sum(entry.size_bytes for entry in manifest.files),
        "splits": manifest.splits,
        "trainable_parameters": manifest.parameters[-1].stop,
        "runtimes": manifest.runtimes,
        "engine": args.engine,
        "parity_loss": parity.loss,
        "parity_logits": parity.logits,
        "kernel": kernel_name(),
    }
    text = (
        f"{args.bundle}: good\n"
        f"  bundle     {bundle.sha256}\n"
        f"  model      {manifest.model.name} ({manifest.model.model_type}, {manifest.model.layers} layers)\n"
        f"  files      {len(manifest.files)}, {sum(e.size_bytes for e in manifest.files) / 1e6:.1f} MB, hashes match\n"
        f"  layout     {manifest.parameters[-1].stop} trainable parameters, splits {manifest.splits}\n"
        f"  parity     loss within {parity.loss:.1e}, logits within {parity.logits:.1e} of PyTorch, on {args.engine}\n"
        f"  kernel     {kernel_name()}: {kernel_reason()}"
    )
    output.emit(args, result, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
