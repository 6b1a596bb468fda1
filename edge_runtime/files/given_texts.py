"""Texts that a command was given: on the command line, or one a line on standard input."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from edge_runtime.errors import DataError, wall

if TYPE_CHECKING:
    from collections.abc import Sequence

STANDARD_INPUT = "-"


def given_texts(given: Sequence[str]) -> list[str]:
    r"""Return the texts of a command line; ``-`` alone: those of standard input, one a line, without empty lines.

    A line ends with ``\n`` or ``\r\n`` alone: the line separators of Unicode belong to a text.

    Raises:
        DataError: standard input has none, or a text is no UTF-8.
    """
    with wall(lambda cause: DataError(f"a text is not in UTF-8: {cause}", "convert it: iconv -t UTF-8")):
        if list(given) != [STANDARD_INPUT]:
            return [os.fsencode(text).decode() for text in given]
        lines = sys.stdin.buffer.read().decode("utf-8-sig").split("\n")
    texts = [line.removesuffix("\r") for line in lines if line.strip()]
    if not texts:
        raise DataError("there are no texts on standard input", "write one a line")
    return texts
