"""For which devices ``covey flash`` makes cards, with which join tokens, and which of a list are done already."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from edge_runtime.values import NAME_PATTERN

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_DONE = ".done"
_TOKENS = "covey fleet token NAME --file FILE"


def names_of(args: argparse.Namespace) -> list[str]:
    """Return the devices of ``--device`` or ``--batch``.

    Raises:
        ConfigError: there are none, a name cannot be one, or is there twice.
    """
    if args.batch is None:
        names = [args.device]
    else:
        try:
            lines = args.batch.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--batch {args.batch} cannot be read ({error})", "give a file with a name a line"
            ) from error
        names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not names:
            raise ConfigError(f"--batch {args.batch} has no names in it", "write one name a line")
    seen: set[str] = set()
    for name in names:
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise ConfigError(f"{name!r} cannot be a device's name", "use letters, digits, - _ and .")
        if name in seen:
            raise ConfigError(f"{name} is in {args.batch} twice", "every card needs a name of its own")
        seen.add(name)
    return names


def done_names(batch: Path) -> set[str]:
    """Return the names of a list that have their cards already."""
    path = _done_file(batch)
    return set(path.read_text().split()) if path.exists() else set()


def enter_done(batch: Path, name: str) -> None:
    """Enter that a name of a list has its card."""
    with _done_file(batch).open("a") as file:
        file.write(f"{name}\n")


def _done_file(batch: Path) -> Path:
    return batch.with_name(batch.name + _DONE)


def given_tokens(path: Path, names: Sequence[str]) -> Mapping[str, str]:
    """Return the join tokens in a file that ``covey fleet token --file`` wrote, by device.

    Raises:
        ConfigError: one is missing, or is another device's.
    """
    from edge_runtime.trust.token import decode_token

    try:
        words = path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--join-tokens {path} cannot be read ({error})", _TOKENS) from error
    found = {token.device: word for word in words if word.startswith("covey1-") for token in [decode_token(word)]}
    missing = [name for name in names if name not in found]
    if missing:
        raise ConfigError(f"{path} has no token for {', '.join(missing[:5])}", _TOKENS)
    return {name: found[name] for name in names}


def ask_what_to_do(name: str, disk: str) -> str:
    """Ask whether a device's card is to be burned now; return ``burn``, ``skip`` or ``quit``."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here: this is no terminal", "give --yes to burn without asking")
    while True:
        answer = input(f"{name}: put its card into {disk}, then burn, skip or quit? [b/s/q] ").strip().lower()
        for word in ("burn", "skip", "quit"):
            if answer and word.startswith(answer):
                return word
