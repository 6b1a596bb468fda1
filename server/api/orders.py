"""What the pages can have begun that needs more than one value: fields, what will happen, and doing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from edge_runtime.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from server.storage.audit_records import Asker

YES = "yes"
"""Value of a box that is ticked."""


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Attributes:
        name: in the form.
        label: what people read.
        kind: a line, a text of several lines, one of several options, or a box to tick.
        value: what it holds at first.
        help: what may be written, as a sentence.
        options: of a choice: value and label of each.
        most: characters that it may have.
        is_required: whether it must not be empty.
    """

    name: str
    label: str
    kind: Literal["line", "text", "choice", "box"] = "line"
    value: str = ""
    help: str = ""
    options: Sequence[tuple[str, str]] = ()
    most: int = 500
    is_required: bool = False

    def check(self, given: str) -> None:
        """Check what was written.

        Raises:
            ConfigError: it is missing, too long, none of the options, or has characters that nobody can read.
        """
        if self.is_required and not given.strip():
            raise ConfigError(f"{self.label} is empty", self.help or "fill it in")
        if len(given) > self.most:
            raise ConfigError(f"{self.label} has more than {self.most} characters", "shorten it")
        if self.kind == "text":
            if "\x00" in given:
                raise ConfigError(f"{self.label} has a character NUL", "remove it")
        elif not given.isprintable():
            raise ConfigError(f"{self.label} has characters that cannot be printed", "write it by hand")
        if self.kind == "choice" and given and given not in [value for value, _ in self.options]:
            raise ConfigError(f"{self.label} is none of the list now", "choose one of the list")


@dataclass(frozen=True)
class Prospect:
    """What will happen.

    Attributes:
        title: of the page that asks.
        effects: what will happen, a sentence each. The same order at another time has the same ones, unless something
            has changed that matters.
        subject: what the audit calls it.
    """

    title: str
    effects: Sequence[str]
    subject: str


@dataclass(frozen=True)
class Outcome:
    """What was done.

    Attributes:
        place: path of the page that follows; empty: the secrets are shown.
        secrets: what is shown this once, by the name of its device.
    """

    place: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)


class Order(Protocol):
    """Something that an operator can have begun.

    Attributes:
        title: of its form.
        check_button: of the form: it shows what will happen.
        button: of the page that asks.
        back: path of the page from which people come.
    """

    title: str
    check_button: str
    button: str
    back: str

    def fields(self) -> list[Field]:
        """Return the form's fields.

        Raises:
            CoveyError: this server can do nothing of the kind, whatever is written.
        """

    def look(self, given: Mapping[str, str]) -> Prospect:
        """Check an order, and say what would happen; nothing does.

        Raises:
            CoveyError: it cannot be done.
        """

    def do(self, given: Mapping[str, str], asker: Asker) -> Outcome:
        """Do it.

        Raises:
            CoveyError: it cannot be done, or somebody has changed the same thing since the asker has looked at it.
        """
