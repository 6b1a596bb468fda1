"""Damages inputs: their bytes, and their structure where they are documents. Equal generators give equal inputs."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

Form = Literal["bytes", "text", "json", "msgpack"]
"""What an input is, so that its structure can be changed and not only its bytes."""
DEEP = 20_000
HOSTILE: list[Any] = [
    None, True, 0, -1, 1, 255, 2**31, 2**40, 2**40 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 0.0, -0.5, 1e308,
    5e-324, float("inf"), float("-inf"), float("nan"), "", "\0", "\n", "..", "../x", "/etc", "a" * 70_000, "😀" * 9,
    "\u202e", "covey/v1/#", "+", "-1", "1e999", [], {}, [[]], [None] * 5000, {"": {}}, {"__metadata__": 5}, b"",
    b"\0" * 64,
]  # fmt: skip
_LENGTHS = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
)
_WORDS = (
    b"-1", b"99999999999999999999", b"1e999", b"NaN", b"\r\n", b"\n", b"\0", b"=", b"[", b"]]", b"{", b'"', b"'", b",",
    b"%00",
    b"/../", b":", b"bytes=0-,0-,0-", b"\xff\xfe", b"\xed\xa0\x80", b"[[a]]\n", b"a.b.c=1\n", b'"""', b"chunked",
)  # fmt: skip


_MOST_BYTES = 8 << 20


def mutated(rng: random.Random, seeds: Sequence[bytes], form: Form) -> bytes:
    """Return a damaged copy of one of the seeds: damaged once, or up to four times."""
    data = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if form in ("json", "msgpack") and rng.random() < 0.6:
            data = _restructured(rng, data, form)
        elif form == "text" and rng.random() < 0.5:
            data = _lines(rng, data)
        else:
            data = rng.choice(_BYTES)(rng, data, seeds)
        data = data[:_MOST_BYTES]  # repeated more than once, a seed would grow beyond what anybody could send
    return data


# -- bytes ----------------------------------------------------------------------------------------------------------


def _flip(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _replace(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    at, length = rng.randrange(len(data) + 1), rng.choice((0, 1, 4, 8))
    return data[:at] + rng.choice((*_LENGTHS, *_WORDS, rng.randbytes(4))) + data[at + length :]


def _truncate(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.randrange(1, 33) :]


def _repeat(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    """Repeat a piece: a thousand times and more where it is short, so that nothing grows over some 200 KB."""
    begin = rng.randrange(len(data) + 1)
    piece = data[begin : begin + rng.choice((1, 1, 2, 8, 64))]
    return data[:begin] + piece * rng.choice((2, 3, 100, 200_000 // max(1, len(piece)))) + data[begin:]


def _splice(rng: random.Random, data: bytes, seeds: Sequence[bytes]) -> bytes:
    other = rng.choice(seeds)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _noise(rng: random.Random, data: bytes, _seeds: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 16, 200))) + data[at:]


_BYTES: tuple[Callable[[random.Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip, _flip, _replace, _replace, _truncate, _remove, _repeat, _splice, _noise,
)  # fmt: skip


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, what = rng.randrange(len(lines)), rng.randrange(4)
    if what == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif what == 1:
        del lines[at]
    elif what == 2:  # another value: what follows a "=" or a ":"
        mark = b"=" if b"=" in lines[at] else b":"
        value = rng.choice(
            (*_WORDS, b" []", b" {}", b" -1", b" 1e308", b" nan", b' "' + b"a" * 70_000 + b'"', b" " + b"[" * DEEP)
        )
        lines[at] = lines[at].split(mark)[0] + mark + value
    else:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    return b"\n".join(lines)


# -- documents ------------------------------------------------------------------------------------------------------


def _restructured(rng: random.Random, data: bytes, form: Form) -> bytes:
    """Change the tree of a document; bytes that are none (any more) are flipped instead."""
    if rng.random() < 0.03:
        return _nested(rng, form)
    try:
        tree = json.loads(data) if form == "json" else msgspec.msgpack.decode(data)
    except (ValueError, RecursionError, msgspec.MsgspecError):
        return _flip(rng, data, ())
    tree = _changed(rng, tree)
    try:
        return json.dumps(tree, default=str).encode() if form == "json" else msgspec.msgpack.encode(tree)
    except (OverflowError, ValueError, RecursionError, UnicodeEncodeError):
        return _flip(rng, data, ())


def _nested(rng: random.Random, form: Form) -> bytes:
    if form == "json":
        return rng.choice((b"[", b'{"v":', b'{"type":[')) * rng.choice((500, DEEP))
    return rng.choice((b"\x91", b"\x81\xa1v", b"\x81\xa4type")) * rng.choice((500, DEEP))


def _changed(rng: random.Random, tree: Any) -> Any:  # noqa: C901 a choice of six changes
    """Replace, remove, double or add one value of a tree, at a random place."""
    nodes: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting and len(nodes) < 5000:
        node = waiting.pop()
        children: list[tuple[Any, Any]] = []
        if isinstance(node, dict):
            children = list(node.items())
        elif isinstance(node, list):
            children = list(enumerate(node))
        nodes += [(node, key) for key, _ in children]
        waiting += [child for _, child in children]
    if not nodes:
        return rng.choice(HOSTILE)
    node, key = rng.choice(nodes)
    what = rng.randrange(6)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, list):
        node += [copy.deepcopy(node[key]) for _ in range(rng.choice((1, 40, 2000)))]
    elif what == 1:
        node["surprise"] = copy.deepcopy(node[key])
    elif what == 2:
        other, other_key = rng.choice(nodes)
        node[key] = copy.deepcopy(other[other_key])
    elif what == 3 and isinstance(node[key], (bytes, str)):
        node[key] = (
            node[key] * rng.choice((2, 5)) if rng.random() < 0.3 else node[key][: rng.randrange(len(node[key]) + 1)]
        )
    elif what == 3 and isinstance(node[key], (int, float)):
        node[key] = rng.choice((node[key] + 1, -node[key], node[key] * 2, float(node[key]), str(node[key])))
    else:
        node[key] = copy.deepcopy(rng.choice(HOSTILE))
    return tree
