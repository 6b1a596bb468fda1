"""Models the profile of a board that nobody has measured: scales a measured machine's times by public figures.

The model: a run reads its weights once, and spends the rest of its time on arithmetic::

    seconds    = (reference − reading) × arithmetic there / here + reading × bandwidth there / here
    reading    = bytes of the weights / bandwidth there, at most the reference's seconds
    arithmetic = cores × clock × operations per cycle × share that programs attain
    bandwidth  = nominal bandwidth × share that programs attain

*There* is the reference machine, whose rates were measured with its graphs (``Rates.matmul_flop_per_s`` and
``copy_bytes_per_s``). The result is good for orders of magnitude and for simulations; a measured profile replaces it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import ProfileError
from edge_runtime.files.toml_file import read_toml
from edge_runtime.protocol.profile import (
    BoardFacts,
    GraphProfile,
    Latency,
    Modelling,
    Profile,
    PublicSource,
    Rates,
    Slug,
)

if TYPE_CHECKING:
    from pathlib import Path

BOARD_FILE = "board.toml"
_FORMULA = (
    "(seconds of {board}, measured {measured_at}, − reading) × {arithmetic_ratio:.3g} + reading × {bandwidth_ratio}; "
    "reading = weights / {reference_bandwidth:.3g} bytes/s; arithmetic {reference_arithmetic:.3g} there, cores × "
    "clock_hz × flop_per_cycle × arithmetic_share = {arithmetic:.3g} flop/s here; bandwidth {reference_bandwidth:.3g} "
    "there, bandwidth_bytes_per_s × bandwidth_share = {bandwidth} bytes/s here"
)
_DIGITS = 4
"""Significant digits of a modelled figure."""


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A public figure; ``note`` says how it follows from the source, where the source does not state it."""

    value: Annotated[float, msgspec.Meta(gt=0, le=1e18)]
    url: Annotated[str, msgspec.Meta(pattern="^https?://", max_length=500)]
    note: str = ""


class BoardFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A board's ``board.toml``: its facts, and the public figures that its times are modelled from.

    Attributes:
        board: name of its folder.
        cores: number of cores that run a graph together.
        clock_hz: their highest clock.
        flop_per_cycle: float32 operations per core and cycle.
        arithmetic_share: share of cores × clock × operations that programs attain.
        bandwidth_bytes_per_s: nominal memory bandwidth; None: the model leaves it out.
        bandwidth_share: share of the bandwidth that programs attain.
        assumptions: assumptions that have no source.
    """

    board: Slug
    model: str
    cpu: str
    machine: str
    cores: Figure
    clock_hz: Figure
    flop_per_cycle: Figure
    arithmetic_share: Figure
    assumptions: list[str]
    bandwidth_bytes_per_s: Figure | None = None
    bandwidth_share: Figure | None = None
    memory_bytes: int | None = None
    os: str | None = None

    @property
    def arithmetic(self) -> float:
        """Operations per second that programs attain."""
        return self.cores.value * self.clock_hz.value * self.flop_per_cycle.value * self.arithmetic_share.value

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second that programs attain; None: not known."""
        if self.bandwidth_bytes_per_s is None or self.bandwidth_share is None:
            return None
        return self.bandwidth_bytes_per_s.value * self.bandwidth_share.value


def read_board(path: Path) -> BoardFigures:
    """Read a ``board.toml``.

    Raises:
        ConfigError: the file cannot be read, or a field is missing, unknown or wrong.
    """
    return read_toml(path, BoardFigures)


def model_profile(figures: BoardFigures, reference: Profile) -> Profile:
    """Return a board's modelled profile.

    Raises:
        ProfileError: the reference was not measured, or lacks the rates that the formula uses.
    """
    arithmetic, bandwidth = reference.rates.matmul_flop_per_s, reference.rates.copy_bytes_per_s
    if reference.measured is None or arithmetic is None or bandwidth is None:
        raise ProfileError(
            f"the profile of {reference.facts.board} cannot be a reference: it is not measured, or lacks "
            "matmul_flop_per_s or copy_bytes_per_s",
            "measure it again: covey-edge profile",
        )
    arithmetic_ratio = arithmetic / figures.arithmetic
    bandwidth_ratio = None if figures.bandwidth is None else bandwidth / figures.bandwidth
    formula = _FORMULA.format(
        board=reference.facts.board,
        measured_at=reference.measured.measured_at[:10],
        arithmetic=figures.arithmetic,
        arithmetic_ratio=arithmetic_ratio,
        reference_arithmetic=arithmetic,
        bandwidth="unknown" if figures.bandwidth is None else f"{figures.bandwidth:.3g}",
        bandwidth_ratio="the same" if bandwidth_ratio is None else f"{bandwidth_ratio:.3g}",
        reference_bandwidth=bandwidth,
    )
    return Profile(
        facts=BoardFacts(
            board=figures.board,
            model=figures.model,
            machine=figures.machine,
            cores=int(figures.cores.value),
            cpu=figures.cpu,
            memory_bytes=figures.memory_bytes,
            os=figures.os,
        ),
        modelled=Modelling(formula=formula, sources=_sources(figures), assumptions=figures.assumptions),
        bundle=reference.bundle,
        graphs=[_model_graph(graph, bandwidth, arithmetic_ratio, bandwidth_ratio) for graph in reference.graphs],
        rates=Rates(
            matmul_flop_per_s=_rounded(figures.arithmetic),
            copy_bytes_per_s=None if figures.bandwidth is None else _rounded(figures.bandwidth),
        ),
    )


def _model_graph(
    graph: GraphProfile, bandwidth: float, arithmetic_ratio: float, bandwidth_ratio: float | None
) -> GraphProfile:
    latencies = []
    for x in graph.latencies:
        reading_s = min(x.median_s, (graph.parameter_bytes or 0) / bandwidth)
        read_ratio = arithmetic_ratio if bandwidth_ratio is None else bandwidth_ratio
        modelled_s = (x.median_s - reading_s) * arithmetic_ratio + reading_s * read_ratio
        latencies.append(Latency(batch_size=x.batch_size, tokens=x.tokens, median_s=_rounded(modelled_s)))
    return GraphProfile(
        kind=graph.kind,
        engine=graph.engine,
        split=graph.split,
        level=graph.level,
        peak_rss_bytes=graph.peak_rss_bytes,
        parameter_bytes=graph.parameter_bytes,
        latencies=latencies,
        note=graph.note,
    )


def _sources(figures: BoardFigures) -> list[PublicSource]:
    units = {
        "cores": "",
        "clock_hz": "Hz",
        "flop_per_cycle": "flop/cycle",
        "arithmetic_share": "",
        "bandwidth_bytes_per_s": "bytes/s",
        "bandwidth_share": "",
    }
    found: list[tuple[str, str, Figure | None]] = [(name, unit, getattr(figures, name)) for name, unit in units.items()]
    return [
        PublicSource(what=f"{name}: {f.note}" if f.note else name, value=f.value, unit=unit, url=f.url)
        for name, unit, f in found
        if f is not None
    ]


def _rounded(value: float) -> float:
    """Return a figure rounded to _DIGITS significant digits."""
    return float(f"{value:.{_DIGITS}g}")
