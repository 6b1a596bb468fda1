"""``covey-edge predict``: classify or continue texts with the device's current adapter."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.bundle.manifest import CAUSAL_LM, Runtime
from edge_runtime.commands.bundle import add_engine_option
from edge_runtime.errors import ConfigError
from edge_runtime.files.given_texts import given_texts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.engines.choose import Engines
    from edge_runtime.values import FloatVector


def add_predict_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``predict``."""
    predict = commands.add_parser(
        "predict",
        help="classify or continue texts with the current adapter",
        description=_predict.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, metavar="edge.toml", help="use the device's current bundle and adapter")
    source.add_argument("--bundle", type=Path, help="use this bundle")
    predict.add_argument("--adapter", type=Path, help="with --bundle: an adapter file (default: the bundle's own)")
    predict.add_argument(
        "--trained", action="store_true", help="with --config: what training has left, not what was rolled out"
    )
    predict.add_argument("--shared", action="store_true", help="with --config: leave the device's personal layers out")
    predict.add_argument(
        "--threads", type=int, default=0, help="threads of one operator (default: as many as may run at once)"
    )
    add_engine_option(predict, None)
    _add_generation_options(predict)
    predict.add_argument(
        "--chat",
        action="store_true",
        help='causal-lm: each text is a message of a user, or {"messages": [{"role": …, "content": …}]}; the answer '
        "to it follows the model's chat template",
    )
    predict.add_argument(
        "text", nargs="+", help="texts to classify; causal-lm: prompts to continue; -: one a line on standard input"
    )
    output.add_format(predict)
    predict.set_defaults(run=_predict)


def _add_generation_options(predict: argparse.ArgumentParser) -> None:
    group = predict.add_argument_group("continuing prompts (causal-lm)")
    group.add_argument("--max-new-tokens", type=int, default=16, help="the most new tokens (default: %(default)s)")
    group.add_argument(
        "--temperature", type=float, help="draw tokens, with the logits divided by this (default: take the likeliest)"
    )
    group.add_argument(
        "--top-p", type=float, help="draw only from the likeliest tokens whose probabilities sum to this (default: all)"
    )
    group.add_argument("--seed", type=int, help="of the draws: the same seed gives the same tokens (default: 0)")


def _predict(args: argparse.Namespace) -> int:
    """Classify texts: label, and the probability of every label. causal-lm: continue prompts.

    Prompts are continued with a cache of keys and values where the bundle has a decode graph; how fast is on stderr,
    and under generation with --format json.

    covey-edge predict --config edge.toml "is this one fine?"
    covey-edge predict --bundle bundle --max-new-tokens 40 "Once upon a time"
    covey-edge predict --config edge.toml - < texts.txt
    covey-edge predict --bundle bundle --temperature 0.8 --top-p 0.95 --seed 7 "Once upon a time"
    """
    from edge_runtime.engines.choose import Engines
    from edge_runtime.engines.predict import predict

    bundle, theta, runtime, providers = _predict_source(args)
    engines = Engines(runtime, args.threads, providers)
    given = {"--chat": args.chat, "--temperature": args.temperature, "--top-p": args.top_p, "--seed": args.seed}
    for flag, value in given.items():
        if value is not None and value is not False and bundle.manifest.task.kind != CAUSAL_LM:
            raise ConfigError(f"{flag}: the bundle's task is {bundle.manifest.task.kind}", f"leave out {flag}")
    if bundle.manifest.task.kind == CAUSAL_LM:
        _continue(args, bundle, theta, engines)
        return 0
    predictions = predict(bundle, theta, given_texts(args.text), engines)
    text = "\n".join(f"{p.label}\t{p.probabilities[p.label]:.3f}\t{p.text}" for p in predictions)
    rows = [{"text": p.text, "label": p.label, "probabilities": p.probabilities} for p in predictions]
    output.emit(args, {"bundle_sha256": bundle.sha256, "predictions": rows}, text)
    return 0


def _continue(args: argparse.Namespace, bundle: Bundle, theta: FloatVector, engines: Engines) -> None:
    """Continue prompts, and print them with what it took."""
    from edge_runtime.device.memory import free_bytes
    from edge_runtime.engines.continuation import Continuer, generation_facts
    from edge_runtime.engines.sampling import make_generation

    generation = make_generation(args.max_new_tokens, args.temperature, args.top_p, args.seed)
    texts = given_texts(args.text)
    prompts = _rendered(bundle, texts) if args.chat else texts
    continuer = Continuer(bundle, engines, free_bytes)
    made = continuer.complete(theta, prompts, generation, is_rendered=args.chat)
    facts = generation_facts(made, generation, continuer.why_not_cached)
    print(_facts_text(facts), file=sys.stderr)
    values = {
        "bundle_sha256": bundle.sha256,
        "predictions": [{"prompt": c.prompt, "completion": c.completion} for c in made],
        "generation": facts,
    }
    output.emit(args, values, "\n".join(c.completion if args.chat else f"{c.prompt}{c.completion}" for c in made))


def _facts_text(facts: Mapping[str, Any]) -> str:
    """Return the line that says how fast prompts were continued."""
    rate = facts["tokens_per_second"]
    speed = "" if rate is None else f", {rate:.1f} tokens a second after the first"
    cached = facts["why_not_cached"]
    cache = f"without a cache: {cached}" if cached else f"with a cache of {facts['cache_bytes']:,} bytes"
    return f"{facts['new_tokens']} new tokens in {facts['seconds']:.2f} s{speed}, {cache}"


def _rendered(bundle: Bundle, texts: Sequence[str]) -> list[str]:
    """Return each conversation as the text to continue, written by the bundle's chat template."""
    from edge_runtime.data.chat import read_chat_template, read_conversation

    template = read_chat_template(bundle)
    return [template.render(read_conversation(text)) for text in texts]


def _predict_source(args: argparse.Namespace) -> tuple[Bundle, FloatVector, Runtime, tuple[str, ...]]:
    """Return the bundle, the adapter, and the runtime and its providers: that of --engine, or the configured ones.

    Everything that is loaded has the hash that names it, or the error names what has not.
    """
    from edge_runtime.bundle.folder import open_bundle, verify_loaded
    from edge_runtime.engines.providers import CPU_ONLY

    if args.config is not None:
        return _current(args)
    runtime: Runtime = args.engine or "onnxruntime"
    bundle = open_bundle(args.bundle)
    verify_loaded(bundle, runtime)
    theta = bundle.initial_adapter() if args.adapter is None else _given_adapter(args.adapter, bundle)
    return bundle, theta, runtime, CPU_ONLY


def _current(args: argparse.Namespace) -> tuple[Bundle, FloatVector, Runtime, tuple[str, ...]]:
    """Return the version in use: the one that was rolled out, else what training has left."""
    from edge_runtime.agent.config import read_edge_config
    from edge_runtime.store.model import model_parameters, named_model, open_model_bundle
    from edge_runtime.store.store import Store

    config = read_edge_config(args.config)
    runtime = args.engine or config.engine
    store = Store(Path(config.state_dir))
    named = named_model(store, trained=args.trained, shared=args.shared)
    bundle = open_model_bundle(store, named, runtime)
    return bundle, model_parameters(store, named, bundle), runtime, config.execution_providers


def _given_adapter(path: Path, bundle: Bundle) -> FloatVector:
    """Return the adapter of --adapter. Its name is its hash where the device or the server has written it."""
    from edge_runtime.bundle.adapter import check_adapter, check_finite, map_adapter
    from edge_runtime.bundle.layout import total_size

    try:
        path.stat()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "give an adapter file") from error
    theta = map_adapter(path, total_size(bundle.manifest.parameters))
    if re.fullmatch("[0-9a-f]{64}", path.stem):
        check_adapter(theta, path.stem)
    else:
        check_finite(theta)
    return theta
