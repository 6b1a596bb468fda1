"""The least versions of libraries that a bundle needs, as its manifest states them, and what of them is not met.

The server asks it of a device's announcement, the device of what is installed on it. A version that is not known, or
that is written in no numbers, is not judged: the trial of the bundle finds out.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.values import Count, Strict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Version = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,9}([.][0-9]{1,9}){0,3}(?!\n)$")]
Opset = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
_NUMBERS = re.compile(r"[0-9]{1,9}(?:[.][0-9]{1,9})*")


class Needs(Strict, frozen=True):
    """What a bundle needs at least.

    Attributes:
        runtimes: the least version of each runtime that the bundle has graphs for.
        tokenizers: the least version of the package tokenizers that reads tokenizer.json.
        ir_version: the highest ONNX IR version among the ONNX graphs.
        opsets: the highest version of each operator set among the ONNX graphs, by its domain; ``ai.onnx`` is the
            default one.
    """

    runtimes: dict[str, Version]
    tokenizers: Version
    ir_version: Count
    opsets: Annotated[dict[str, Opset], msgspec.Meta(max_length=64)]

    def version_of(self, package: str) -> str | None:
        """Return the least version of a runtime, or of tokenizers; None: the bundle states none."""
        return self.tokenizers if package == "tokenizers" else self.runtimes.get(package)

    @property
    def of_graphs(self) -> str:
        """The formats of the ONNX graphs as text, for example ``ONNX IR 10, opset 20``."""
        opsets = [f"opset {self.opsets['ai.onnx']}"] if "ai.onnx" in self.opsets else []
        opsets += [f"{name} {version}" for name, version in sorted(self.opsets.items()) if name != "ai.onnx"]
        return ", ".join([f"ONNX IR {self.ir_version}", *opsets])


class Unmet(msgspec.Struct, frozen=True):
    """A package that is older than a bundle needs.

    Attributes:
        package: its name, as pip knows it.
        found: the version that is there.
        needed: the least version.
        because: what in the bundle needs it.
    """

    package: str
    found: str
    needed: str
    because: str

    def __str__(self) -> str:
        return f"{self.package} {self.found} is too old: {self.because} needs {self.needed} or newer"


def unmet_needs(needs: Needs | None, runtime: str, versions: Mapping[str, str]) -> list[Unmet]:
    """Return the packages that are older than a bundle needs.

    Args:
        needs: what the bundle needs; None: its manifest does not say, nothing is judged.
        runtime: what runs the graphs.
        versions: what is installed, by the name of the package; a build of a runtime for one kind of board
            (``onnxruntime-gpu``) counts as the runtime. What is missing there is not judged.
    """
    if needs is None:
        return []
    found = []
    for package in (runtime, "tokenizers"):
        needed, name = needs.version_of(package), _installed_as(package, versions)
        if needed is None or name is None:
            continue
        if is_older(versions[name], needed):
            because = "tokenizer.json" if package == "tokenizers" else _graphs_of(needs, package)
            found.append(Unmet(name, versions[name], needed, because))
    return found


def advice(unmet: Sequence[Unmet]) -> str:
    """Return what to do about packages that are too old; a device has work again once it starts with newer ones."""
    wanted = " ".join(f"'{package.package}>={package.needed}'" for package in unmet)
    return f"on the device: pip install {wanted}, then start covey-edge again"


def is_older(found: str, needed: str) -> bool:
    """Return whether a version is older than another one, by the numbers that both begin with.

    What follows the numbers (``rc1``, ``+cpu``) is not looked at; a version without numbers is not older.
    """
    ours, theirs = _numbers(found), _numbers(needed)
    if not ours or not theirs:
        return False
    longest = max(len(ours), len(theirs))
    return ours + (0,) * (longest - len(ours)) < theirs + (0,) * (longest - len(theirs))


def _numbers(version: str) -> tuple[int, ...]:
    match = _NUMBERS.match(version)
    return () if match is None else tuple(int(number) for number in match.group().split("."))


def _installed_as(package: str, versions: Mapping[str, str]) -> str | None:
    if package in versions:
        return package
    return next((name for name in sorted(versions) if name.startswith(f"{package}-")), None)


def _graphs_of(needs: Needs, runtime: str) -> str:
    return needs.of_graphs if runtime == "onnxruntime" else f"what {runtime} runs"
