"""``covey device predict``: ask a device's own model, through the running server."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from edge_runtime import output
from edge_runtime.errors import ConfigError, DataError
from edge_runtime.files.given_texts import given_texts
from edge_runtime.protocol.predictions import LONGEST_PATIENCE_S, MOST_TEXTS
from server.client.prediction_batches import answers
from server.commands.installed import needs_server
from server.commands.reaching import add_reaching, open_client

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from server.commands.shared_options import Commands

_TIMEOUT_S = 60.0
_SETTINGS = ("max_new_tokens", "chat", "temperature", "top_p", "seed")
"""Of a request; what is not given is left out, so that a device which does not know it answers."""
_MOST_PROMPTS = 8
"""Texts in one request whose settings are those of a causal model: each new token takes a run of the graph."""


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
        help="how long the answer to each request may take: the first one loads the model (default: %(default)g)",
    )
    add_reaching(predict)
    output.add_format(predict)
    predict.set_defaults(run=needs_server(_predict))


def _predict(args: argparse.Namespace) -> int:
    """Ask a device's model: what covey-edge predict prints on the device, with its adapter and personal layers.

    covey device predict pi-kitchen "is this one fine?"; or many: covey device predict pi-kitchen - < texts.txt

    The device answers only if its owner has set answer_server = true under [predict] in its edge.toml. It answers
    beside its training, after the step at work. More than 64 texts (with a setting of causal-lm: more than 8) are sent
    one request after another, and each answer is printed as it comes. --timeout is for each request. An answer that is
    too large for a message is asked for in halves; where the device answers only so many texts a minute, the command
    waits, and says so on stderr.
    """
    if not 0 < args.timeout <= LONGEST_PATIENCE_S:
        raise ConfigError(f"--timeout {args.timeout:g} is not between 0 and {LONGEST_PATIENCE_S:g}", "in seconds")
    path = f"/devices/{args.device}/predict?patience_s={args.timeout:g}"
    wanted = {name: value for name in _SETTINGS if (value := getattr(args, name)) is not None}
    most = _MOST_PROMPTS if wanted else MOST_TEXTS
    with open_client(args) as client:

        def ask(texts: list[str], first: int) -> dict[str, Any]:
            earlier = {"first": first} if first and args.temperature else {}
            try:
                return client.ask("POST", path, {"text": texts, **wanted, **earlier}, more_s=args.timeout)
            except DataError as error:
                if earlier and "unknown field `first`" in error.what:
                    what = f"the Covey of {args.device} is too old to draw for more texts than fit into one request"
                    raise ConfigError(what, f"update it, or give it at most {most} texts at once") from error
                raise

        for answer in answers(given_texts(args.text), most, ask, time.sleep, _say):
            output.emit(args, {"device": args.device, **answer}, _text(answer["predictions"], chat=args.chat))
    return 0


def _say(progress: str) -> None:
    print(progress, file=sys.stderr)


def _text(predictions: Sequence[dict[str, Any]], *, chat: bool | None) -> str:
    """Return predictions as covey-edge predict prints them."""
    return "\n".join(_line(prediction, chat=chat) for prediction in predictions)


def _line(prediction: dict[str, Any], *, chat: bool | None) -> str:
    if "completion" in prediction:
        prompt = "" if chat else prediction["prompt"]
        return f"{prompt}{prediction['completion']}"
    label = prediction["label"]
    return f"{label}\t{prediction['probabilities'][label]:.3f}\t{prediction['text']}"
