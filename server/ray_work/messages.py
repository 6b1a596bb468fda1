"""What a command and the driver of its workers say to each other; every message is one parcel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from server.ray_work.piece import Refusal


@dataclass(frozen=True)
class Keep:
    """The command: many pieces will need a value.

    Attributes:
        number: names it from now on.
        value: the value.
    """

    number: int
    value: Any


@dataclass(frozen=True)
class Drop:
    """The command: no further piece needs a value."""

    number: int


@dataclass(frozen=True)
class Kept:
    """An argument of a piece: the value of this number."""

    number: int


@dataclass(frozen=True)
class Ask:
    """The command: have a worker compute a piece; see piece.run_piece.

    Attributes:
        number: names the piece.
        make: see run_piece.
        described: number of the kept description.
        function: see run_piece.
        arguments: values and Kept.
    """

    number: int
    make: Callable[[Any], Any]
    described: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Cancel:
    """The command: nobody waits for a piece any more."""

    number: int


@dataclass(frozen=True)
class Ready:
    """The driver, first: pieces can come.

    Attributes:
        workers: number of pieces that are computed at once.
    """

    workers: int


@dataclass(frozen=True)
class Answer:
    """The driver: a piece is done.

    Attributes:
        number: the piece's.
        value: what the function has returned, or a Refusal.
    """

    number: int
    value: Any


@dataclass(frozen=True)
class Ended:
    """The driver, last: it could not begin, or Ray is lost.

    Attributes:
        why: what was wrong.
    """

    why: Refusal
