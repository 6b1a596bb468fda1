"""Writes the part of docs/protocol.md that lists topics, messages and fields, from the structs that are sent."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, get_args

from msgspec import inspect as types

from edge_runtime.protocol.messages import AnyMessage
from edge_runtime.protocol.signed import SERVER, route_of
from edge_runtime.protocol.topics import Kind, hello_topic, servers_topic, topic_for
from edge_runtime.values import NAME_PATTERN, Sha256

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

PROTOCOL_PAGE = "docs/protocol.md"
_BEGIN, _END = "<!-- written by .ci/protocol_page.py from here -->", "<!-- to here -->"
_PATTERNS = {NAME_PATTERN: "a name", get_args(Sha256)[1].pattern: "SHA-256 in hex"}
_BASE = ("v",)
"""Fields of every message, which the page explains once."""
_UNSIGNED = {
    servers_topic("FLEET"): ("a server, without a signature", "the other servers"),
    topic_for("FLEET", "DEVICE", "probe"): ("whoever tries the broker, without a signature", "the same"),
}
_PLAIN = {
    types.BoolType: "true or false",
    types.AnyType: "anything",
    types.NoneType: "null",
    types.RawType: "any value",
}
_UNIT_OF_LENGTH = {types.StrType: "characters", types.BytesType: "bytes", types.ListType: "items", types.DictType: ""}


def protocol_page(page: str) -> str:
    """Return the page with its written part made anew.

    Args:
        page: the text of docs/protocol.md.

    Raises:
        ValueError: it does not have the two lines between which the part is.
    """
    if page.count(_BEGIN) != 1 or page.count(_END) != 1:
        raise ValueError(f"{PROTOCOL_PAGE} does not have the lines {_BEGIN} and {_END}")
    before, _, rest = page.partition(_BEGIN)
    return f"{before}{_BEGIN}\n\n{_written()}\n{_END}{rest.partition(_END)[2]}"


def stale_page(root: Path) -> Iterator[str]:
    """Yield what is wrong with the page of a tree that has the protocol."""
    path = root / PROTOCOL_PAGE
    if not (root / "edge_runtime" / "protocol").is_dir():
        return
    try:
        text = path.read_text()
        if text != protocol_page(text):
            yield f"{PROTOCOL_PAGE} is stale: run python .ci/house.py --write"
    except (OSError, ValueError) as error:
        yield str(error)


def _written() -> str:
    messages = sorted(_structs(get_args(AnyMessage)), key=lambda found: str(found.tag))
    inner: dict[str, types.StructType] = {}
    for message in messages:
        for found in _inner(message):
            inner.setdefault(found.cls.__name__, found)
    parts = [_topics(), "Every message has `v`, the version of the protocol, and `type`, its tag.\n"]
    parts += [f"### `{message.tag}`\n\n{_described(message)}" for message in messages]
    parts += ["## What messages contain\n"]
    parts += [f"### {name}\n\n{_described(found)}" for name, found in sorted(inner.items())]
    return "\n".join(parts)


def _topics() -> str:
    rows = ["| topic | who says it | who hears it |", "|---|---|---|"]
    topics = [hello_topic("FLEET"), servers_topic("FLEET"), *(topic_for("FLEET", "DEVICE", k) for k in get_args(Kind))]
    for topic in topics:
        route = route_of("FLEET", topic)
        who = _UNSIGNED[topic] if route is None else (_whom(route.speaker), _whom(route.listener))
        rows.append(f"| `{topic}` | {' | '.join(who)} |")
    return "\n".join([*rows, ""])


def _whom(one: str | None) -> str:
    return {None: "every device", "DEVICE": "the device", SERVER: "the server"}[one]


def _structs(union: Iterable[Any]) -> list[types.StructType]:
    found = (types.type_info(kind) for kind in union)
    return [one for one in found if isinstance(one, types.StructType)]


def _inner(struct: types.StructType) -> Iterator[types.StructType]:
    """Yield the structs that a struct contains, and what those contain."""
    for field in struct.fields:
        for found in _within(field.type):
            yield found
            yield from _inner(found)


def _within(kind: Any) -> Iterator[types.StructType]:  # noqa: ANN401 msgspec's types have no common base here
    if isinstance(kind, types.StructType):
        yield kind
    for name in ("types", "item_types"):
        for part in getattr(kind, name, ()):
            yield from _within(part)
    for name in ("item_type", "key_type", "value_type", "type"):
        part = getattr(kind, name, None)
        if isinstance(part, types.Type):
            yield from _within(part)


def _described(struct: types.StructType) -> str:
    summary, meanings = _documented(struct.cls)
    rows = [
        f"| `{field.encode_name}` | {_cell(_words(field))} | {_cell(meanings.get(field.name, ''))} |"
        for field in struct.fields
        if field.name not in _BASE
    ]
    table = "\n".join(["| field | type | meaning |", "|---|---|---|", *rows])
    said = re.sub(r"``(.+?)``", r"`\1`", summary)
    return f"{said}\n\n{table}\n" if rows else f"{said}\n"


def _documented(cls: type) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a struct's docstring, and what it and its bases say of each field."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for entry in re.finditer(r"^    (\w+(?:, \w+)*): ((?:.|\n(?=     ))*)", attributes, re.MULTILINE):
            for name in entry[1].split(", "):
                meanings[name] = " ".join(entry[2].split())
    summary = " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())
    for other in re.findall(r"see (\w+) for the other fields", summary):
        meanings = _documented(vars(inspect.getmodule(cls))[other])[1] | meanings
    return summary, meanings


def _words(field: types.Field) -> str:
    return _type(field.type) + ("" if field.required else ", may be left out")


def _type(kind: Any) -> str:  # noqa: ANN401, PLR0911 one line for each kind of type
    if isinstance(kind, types.StructType):
        return f"[{kind.cls.__name__}](#{kind.cls.__name__.lower()})"
    if isinstance(kind, types.UnionType):
        shown = [part for part in kind.types if not isinstance(part, types.CustomType)]
        return " or ".join(dict.fromkeys(_type(part) for part in shown))
    if isinstance(kind, types.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, types.IntType | types.FloatType):
        return ("integer" if isinstance(kind, types.IntType) else "number") + _bounds(kind)
    if isinstance(kind, types.StrType | types.BytesType):
        known = _PATTERNS.get(getattr(kind, "pattern", None) or "")
        name = "text" if isinstance(kind, types.StrType) else "bytes"
        pattern = getattr(kind, "pattern", None)
        return known or name + _length(kind) + (f", like `{pattern}`" if pattern else "")
    if isinstance(kind, types.ListType):
        return f"list of {_type(kind.item_type)}{_length(kind)}"
    if isinstance(kind, types.DictType):
        return f"map of {_type(kind.key_type)} to {_type(kind.value_type)}"
    if isinstance(kind, types.Metadata):
        return _type(kind.type)
    return _PLAIN.get(type(kind), type(kind).__name__)


def _bounds(kind: types.IntType | types.FloatType) -> str:
    low = f" ≥ {kind.ge:g}" if kind.ge is not None else f" > {kind.gt:g}" if kind.gt is not None else ""
    high = f" ≤ {_number(kind.le)}" if kind.le is not None else f" < {_number(kind.lt)}" if kind.lt is not None else ""
    return f"{low}{',' if low and high else ''}{high}"


def _number(value: float) -> str:
    if isinstance(value, int) and value >= 2**31:
        power = value.bit_length() - (value & (value - 1) == 0)
        return f"2^{power}" if value == 2**power else f"2^{power} − 1" if value == 2**power - 1 else str(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _length(kind: Any) -> str:  # noqa: ANN401 msgspec's types have no common base here
    unit = _UNIT_OF_LENGTH[type(kind)]
    low, high = kind.min_length, kind.max_length
    if low is not None and low == high:
        return f", {low} {unit}"
    said = [f"at least {low}"] if low else []
    said += [f"at most {high}"] if high is not None else []
    return f", {' and '.join(said)} {unit}" if said else ""


def _cell(text: str) -> str:
    return re.sub(r"``(.+?)``", r"`\1`", text).replace("|", "\\|")
