"""A device's profile: what each graph of a bundle costs on it, and how that is known.

A profile is *measured*, with its provenance, or *modelled*, with its formula and public sources; a modelled one never
says that it was measured. The JSON Schema of these structs is device_profiles/profile.schema.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from edge_runtime.bundle.levels import Level
from edge_runtime.bundle.manifest import graph_name
from edge_runtime.errors import ProfileError
from edge_runtime.values import Sha256, Strict

if TYPE_CHECKING:
    from collections.abc import Sequence

PROFILE_VERSION: Literal[1] = 1
PROFILE_FILE = "profile.json"
"""In a device's state directory."""

Slug = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(?!\n)$")]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e18)]
Duration = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=2**50)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=2**31)]
Text = Annotated[str, msgspec.Meta(max_length=2000)]


class BoardFacts(Strict, frozen=True, kw_only=True):
    """What a board is; nothing here changes while it runs.

    Attributes:
        board: the name of its folder in device_profiles.
        model: what the firmware calls it.
        machine: architecture, as ``uname -m``.
        cores: processors that are online.
        cpu: name of the processor.
        memory_bytes: all of the memory.
        max_clock_hz: highest clock of the fastest core.
        os: distribution and version.
        kernel: release of the kernel.
    """

    board: Slug
    model: Text | None = None
    machine: Text | None = None
    cores: AtLeastOne | None = None
    cpu: Text | None = None
    memory_bytes: Bytes | None = None
    max_clock_hz: Positive | None = None
    os: Text | None = None
    kernel: Text | None = None


class Reading(Strict, frozen=True, kw_only=True):
    """What a board's sensors say at one moment.

    Attributes:
        temperature_c: hottest thermal zone.
        throttled: whether the clock is held down right now, by heat or by a weak supply.
        throttled_since_boot: whether it was at any time since power-on.
        under_voltage: whether the supply is too weak right now.
        clock_hz: clock of the fastest core.
        governor: the clock's governor.
        power_w: what the board or its processor takes.
        power_sensor: where ``power_w`` was read.
        load: runnable processes a core, over the last minute.
        memory_free_bytes: memory that can be had without swapping.
        disk_free_bytes: where bundles are kept.
        on_mains: whether a charger or supply is connected.
        battery: charge, 0 … 1.
    """

    temperature_c: Annotated[float, msgspec.Meta(ge=-60, le=200)] | None = None
    throttled: bool | None = None
    throttled_since_boot: bool | None = None
    under_voltage: bool | None = None
    clock_hz: Positive | None = None
    governor: Text | None = None
    power_w: Annotated[float, msgspec.Meta(ge=0, le=1e5)] | None = None
    power_sensor: Text | None = None
    load: Annotated[float, msgspec.Meta(ge=0, le=1e6)] | None = None
    memory_free_bytes: Bytes | None = None
    disk_free_bytes: Bytes | None = None
    on_mains: bool | None = None
    battery: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


class Latency(Strict, frozen=True, kw_only=True):
    """How long one run takes at one shape.

    Attributes:
        batch_size: rows.
        tokens: tokens a row.
        median_s: seconds a run; of a modelled profile, what the formula gives.
        low_s: 10th percentile; None where modelled.
        high_s: 90th percentile; None where modelled.
        count: timed runs, without the warm-up; None where modelled.
        power_w: mean power meanwhile.
    """

    batch_size: AtLeastOne
    tokens: AtLeastOne
    median_s: Duration
    low_s: Duration | None = None
    high_s: Duration | None = None
    count: AtLeastOne | None = None
    power_w: Annotated[float, msgspec.Meta(ge=0, le=1e5)] | None = None


class Sustained(Strict, frozen=True, kw_only=True):
    """What is left under thermal load: the same shape run over and over.

    Attributes:
        seconds: how long.
        first_s: median of the runs of the first tenth of that time.
        last_s: median of the runs of the last tenth: the sustained figure.
        before: sensors at its beginning.
        after: sensors at its end.
    """

    batch_size: AtLeastOne
    tokens: AtLeastOne
    seconds: Duration
    first_s: Duration
    last_s: Duration
    count: AtLeastOne
    before: Reading
    after: Reading


class GraphProfile(Strict, frozen=True, kw_only=True):
    """What one graph costs on one engine.

    Attributes:
        kind: of the manifest: ``front``, ``back``, ``predict``, ``train``.
        engine: the runtime.
        split: of ``front`` and ``back``.
        level: active layers, or the top level, of ``train``.
        load_s: time to load it and make its first run; of ``front``, to load it and its ``back``.
        peak_rss_bytes: highest resident memory of a process of its own while it ran it at all shapes; ``front`` and
            ``back`` of a split are loaded together, as a device has them.
        parameter_bytes: weights that are bound to it, frozen or trained; an embedding's count whole.
        base_rss_bytes: the same process before it loaded a graph.
        latencies: one for each shape.
        sustained: under thermal load, where asked for.
        note: why something is missing.
    """

    kind: Literal["front", "back", "predict", "train"]
    engine: Text
    split: Annotated[int, msgspec.Meta(ge=0)] | None = None
    level: Level | None = None
    load_s: Duration | None = None
    peak_rss_bytes: Bytes | None = None
    base_rss_bytes: Bytes | None = None
    parameter_bytes: Bytes | None = None
    latencies: list[Latency]
    sustained: Sustained | None = None
    note: Text | None = None

    @property
    def name(self) -> str:
        """Its name among the graphs of a profile."""
        return graph_name(self.kind, self.split, self.level)


class StackTiming(Strict, frozen=True, kw_only=True):
    """How long the back block takes for each of several adapters, both ways, measured in turn.

    Attributes:
        batch_size: rows.
        tokens: tokens a row.
        adapters: adapters of a call.
        single_s: seconds an adapter, one after the other (median).
        stacked_s: seconds an adapter, all in one call (median).
        count: timed pairs.
    """

    batch_size: AtLeastOne
    tokens: AtLeastOne
    adapters: AtLeastOne
    single_s: Duration
    stacked_s: Duration
    count: AtLeastOne


class StackProfile(Strict, frozen=True, kw_only=True):
    """Where many perturbed adapters in one call pay, at one split.

    Attributes:
        engine: the runtime.
        split: the split of the back block.
        timings: for each shape, one for each number of adapters that there was memory for.
        note: why something is missing.
    """

    engine: Text
    split: Annotated[int, msgspec.Meta(ge=0)]
    timings: list[StackTiming]
    note: Text | None = None


class Rates(Strict, frozen=True, kw_only=True):
    """What does not depend on a graph.

    Attributes:
        perturb_parameters_per_s: parameters perturbed once, a second.
        replay_parameters_per_s: parameters × directions replayed a second.
        link_down_bytes_per_s: from the server.
        link_up_bytes_per_s: to the broker.
        matmul_flop_per_s: operations of a large float32 matrix product a second, with the threads of the graphs; the
            median of what was timed between the graphs.
        copy_bytes_per_s: bytes read and written a second while memory is copied, with one core; likewise.
    """

    perturb_parameters_per_s: Positive | None = None
    replay_parameters_per_s: Positive | None = None
    link_down_bytes_per_s: Positive | None = None
    link_up_bytes_per_s: Positive | None = None
    matmul_flop_per_s: Positive | None = None
    copy_bytes_per_s: Positive | None = None


class BundleFacts(Strict, frozen=True, kw_only=True):
    """Which bundle the graphs belong to."""

    sha256: Sha256
    model: Text
    layers: AtLeastOne
    trainable_parameters: AtLeastOne


class Provenance(Strict, frozen=True, kw_only=True):
    """How a measured profile came about.

    Attributes:
        measured_at: UTC, ISO 8601.
        seconds: how long it took, by the monotonic clock.
        wall_seconds: the same by the wall clock: another figure means that the clock was set meanwhile.
        clock: the clock that timed the runs, and its resolution in seconds.
        covey_version: version of Covey.
        commit: git commit of Covey; None where it was installed from a wheel.
        versions: Python, NumPy, runtimes, kernel of the perturbation.
        threads: that one operator had, the most where runtimes differ; 0, in profiles that an older Covey measured: as
            many as could run at once.
        warm_up: runs before the timed ones.
        before: sensors before the first run.
        after: sensors after the last one.
        execution_providers: what ONNX Runtime ran the graphs on, as in edge.toml; left out: the processor.
    """

    measured_at: Text
    seconds: Duration
    wall_seconds: float
    clock: Text
    covey_version: Text
    commit: Text | None
    versions: dict[str, str]
    threads: Annotated[int, msgspec.Meta(ge=0)]
    warm_up: Annotated[int, msgspec.Meta(ge=0)]
    before: Reading
    after: Reading
    execution_providers: list[str] | msgspec.UnsetType = msgspec.UNSET


class PublicSource(Strict, frozen=True, kw_only=True):
    """A public figure that a model uses."""

    what: Text
    value: Positive
    unit: Text
    url: Text


class Modelling(Strict, frozen=True, kw_only=True):
    """Where the figures of a modelled profile come from: the formula, public figures, and what is only assumed."""

    formula: Text
    sources: list[PublicSource]
    assumptions: list[Text]


class Profile(Strict, frozen=True, kw_only=True):
    """A profile. Exactly one of ``measured`` and ``modelled`` is there.

    ``stacks`` is left out where the bundle has no stack graphs, as in profiles of before.
    """

    format_version: Literal[1] = PROFILE_VERSION
    device: Text | None = None
    facts: BoardFacts
    measured: Provenance | None = None
    modelled: Modelling | None = None
    bundle: BundleFacts
    graphs: list[GraphProfile]
    rates: Rates = Rates()
    stacks: list[StackProfile] | msgspec.UnsetType = msgspec.UNSET

    @property
    def slowdown(self) -> float:
        """How many times slower the board becomes under thermal load; 1 where that was not measured."""
        return max([1.0] + [g.sustained.last_s / g.sustained.first_s for g in self.graphs if g.sustained is not None])

    @property
    def source(self) -> Literal["measured", "modelled"]:
        """How its figures are known."""
        return "modelled" if self.measured is None else "measured"

    def graph(
        self, kind: str, *, split: int | None = None, level: Level | None = None, engine: str | None = None
    ) -> GraphProfile | None:
        """Return the profile of a graph that has latencies; the quickest engine's where none is named. None: none."""
        found = [
            graph
            for graph in self.graphs
            if (graph.kind, graph.split, graph.level) == (kind, split, level)
            and engine in (None, graph.engine)
            and graph.latencies
        ]
        return min(found, key=lambda graph: latency_s(graph, 8, 32), default=None)


def latency_s(graph: GraphProfile, batch_size: int, tokens: int) -> float:
    """Return the seconds of a run at a shape, on a board that is not throttled; see Profile.slowdown.

    Between measured shapes, time is a line over the number of tokens of the batch, never below 0; below the smallest
    and above the largest it goes on in proportion.

    Raises:
        ProfileError: the graph has no latencies.
    """
    if not graph.latencies:
        raise ProfileError(f"the profile of {graph.name} has no latencies", "measure it again: covey-edge profile")
    by_size: dict[int, list[float]] = {}
    for latency in graph.latencies:
        by_size.setdefault(latency.batch_size * latency.tokens, []).append(latency.median_s)
    points = sorted((size, sum(times) / len(times)) for size, times in by_size.items())
    return _interpolate(points, batch_size * tokens)


def _interpolate(points: Sequence[tuple[int, float]], size: int) -> float:
    below = [p for p in points if p[0] <= size]
    above = [p for p in points if p[0] >= size]
    if below and above:
        (x0, y0), (x1, y1) = below[-1], above[0]
        return y0 if x0 == x1 else y0 + (y1 - y0) * (size - x0) / (x1 - x0)
    x, y = below[-1] if below else above[0]
    return y * size / x
