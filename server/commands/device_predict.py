"""``covey device predict``: ask a device's own model, through the running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError
from edge_runtime.files.given_texts import given_texts
from edge_runtime.protocol.predictions import LONGEST_PATIENCE_S, MOST_REQUEST_BYTES, MOST_TEXTS
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, open_client

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from server.commands.shared_options import Commands

_TIMEOUT_S = 60.0
_SETTINGS = ("max_new_tokens", "chat", "temperature", "top_p", "seed")
"""Of a request; what is not given is left out, so that a device which does not know it answers."""
_ANSWER_BYTES = MOST_REQUEST_BYTES // 2
"""Bytes of texts in one request: the answer repeats them."""


def add_device_predict(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add ``device predict``."""
    predict = commands.add_parser("predict", help="ask a device's model", description=_predict.__doc__)
    predict.add_argument("device", help="name of the device")
    predict.add_argument(
        "text", nargs="+", help="texts to classify; causal-lm: prompts to continue; -: one a line on standard input"
    )
    predict.add_argument("--max-new-tokens", type=int, help="causal-lm: largest number of new tokens (default: 16)")
    predict.add_argument("--temperature", type=float, help="causal-lm: draw tokens (default: take the likeliest)")
    predict.add_argument("--top-p", type=float, help="causal-lm: draw only from the likeliest that sum to this")
    predict.add_argument("--seed", type=int, help="causal-lm: of the draws (default: 0)")
    predict.add_argument(
        "--chat",
        action="store_true",
        default=None,
        help='causal-lm: each text is a message of a user, or {"messages": [{"role": …, "content": …}]}',
    )
    predict.add_argument(
        "--timeout",
        type=float,
        default=_TIMEOUT_S,
        metavar="SECONDS",
        help="how long an answer may take: the first one loads the model (default: %(default)g)",
    )
    add_reaching(predict)
    output.add_format(predict)
    predict.set_defaults(run=needs_server(_predict))


def _predict(args: argparse.Namespace) -> int:
    """Ask a device's model: what covey-edge predict prints on the device, with its adapter and personal layers.

    covey device predict pi-kitchen "is this one fine?"; or many: covey device predict pi-kitchen - < texts.txt

    The device answers only if its owner has set answer_server = true under [predict] in its edge.toml. It answers
    beside its training, after the step at work. More than 64 texts are sent one request after another, and each answer
    is printed as it comes.
    """
    if not 0 < args.timeout <= LONGEST_PATIENCE_S:
        raise ConfigError(f"--timeout {args.timeout:g} is not between 0 and {LONGEST_PATIENCE_S:g}", "in seconds")
    path = f"/devices/{args.device}/predict?patience_s={args.timeout:g}"
    wanted = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    with open_client(args) as client:
        for texts in _batches(given_texts(args.text)):
            answer = client.ask("POST", path, {"text": texts, **wanted}, more_s=args.timeout)
            output.emit(args, {"device": args.device, **answer}, _text(answer["predictions"], chat=args.chat))
    return 0


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield texts in requests that are not too large; a text that is too large itself is for the server to refuse."""
    batch: list[str] = []
    size = 0
    for text in texts:
        cost = len(text.encode())
        if batch and (len(batch) == MOST_TEXTS or size + cost > _ANSWER_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += cost
    yield batch


def _text(predictions: Sequence[dict[str, Any]], *, chat: bool | None) -> str:
    """Return predictions as covey-edge predict prints them."""
    return "\n".join(_line(prediction, chat=chat) for prediction in predictions)


def _line(prediction: dict[str, Any], *, chat: bool | None) -> str:
    if "completion" in prediction:
        prompt = "" if chat else prediction["prompt"]
        return f"{prompt}{prediction['completion']}"
    label = prediction["label"]
    return f"{label}\t{prediction['probabilities'][label]:.3f}\t{prediction['text']}"
