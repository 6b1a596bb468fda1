"""What a worker does with a piece of work: it makes once what all pieces need, and answers with a value or an error."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import as_covey_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MOST_KEPT = 4
"""How many things a worker keeps for further pieces, such as loaded models."""
_kept: OrderedDict[str, Any] = OrderedDict()


@dataclass(frozen=True)
class Refusal:
    """An error of a worker; an exception itself loses its hint where it is sent.

    Attributes:
        code: its exit code.
        what: see CoveyError.
        hint: see CoveyError.
    """

    code: int
    what: str
    hint: str


def as_refusal(error: Exception) -> Refusal:
    """Return any exception as a value: see errors.as_covey_error."""
    known = as_covey_error(error)
    return Refusal(known.exit_code, known.what, known.hint)


def run_piece(
    make: Callable[[Any], Any],
    described: Sequence[Any],
    function: Callable[..., Any],
    *arguments: Any,  # noqa: ANN401 of the function
) -> Any:  # noqa: ANN401 of the function
    """Run a function on a worker.

    Args:
        make: makes what all pieces need from its description.
        described: the reference of the description, in a list: so Ray does not fetch it for every piece.
        function: gets what was made, and the arguments.
        arguments: of this piece.

    Returns:
        The function's value, or a Refusal.
    """
    import ray  # noqa: PLC0415 a worker has it, this module's importers may not

    try:
        return function(_made(make, described[0], ray.get), *arguments)
    except ray.exceptions.RayError:
        raise  # a machine is gone: Ray tries the piece again
    except Exception as error:  # noqa: BLE001 the process that asked raises it
        return as_refusal(error)


def _made(make: Callable[[Any], Any], reference: Any, get: Callable[[Any], Any]) -> Any:  # noqa: ANN401
    key = reference.hex()
    if key not in _kept:
        _kept[key] = make(get(reference))
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]
