"""Profiles of simulated boards: three invented classes; and the splits and levels that profiles share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.levels import ascending, forward_passes
from edge_runtime.errors import ConfigError
from edge_runtime.protocol.profile import BoardFacts, BundleFacts, GraphProfile, Latency, Modelling, Profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_runtime.bundle.levels import Level

_LAYERS = 12
_LEVELS = (2, 4, 6, 9, 12)
_SPLITS = (8,)
_CLASSES = (("fast", 0.004, True), ("middle", 0.012, True), ("slow", 0.03, False))
"""Name, seconds of a layer's forward pass at batch 8 × 64 tokens, and whether the class backpropagates; invented."""


def modelled_profiles(
    layers: int = _LAYERS, splits: Sequence[int] = _SPLITS, levels: Sequence[Level] = _LEVELS
) -> list[Profile]:
    """Return three invented classes of boards: a layer's forward pass takes 4, 12 and 30 ms, a backward pass double."""
    assumption = ["classes of speed for simulations; no board was measured"]
    found = []
    for name, layer_s, trains in _CLASSES:

        def graph(kind: str, passes: float, layer_s: float = layer_s, **where: Level) -> GraphProfile:
            times = [Latency(batch_size=b, tokens=64, median_s=layer_s * passes * (0.2 + 0.8 * b / 8)) for b in (1, 8)]
            return GraphProfile(kind=kind, engine="modelled", latencies=times, **where)  # type: ignore[arg-type]

        graphs = [graph("predict", layers + 0.5)]
        graphs += (
            [graph("train", layers * forward_passes(level, layers), level=level) for level in levels] if trains else []
        )
        for split in splits:
            graphs += [graph("front", split, split=split), graph("back", layers - split + 0.5, split=split)]
        found.append(
            Profile(
                facts=BoardFacts(board=f"class-{name}"),
                modelled=Modelling(formula=f"{layer_s} s a layer and forward pass", sources=[], assumptions=assumption),
                bundle=BundleFacts(sha256="0" * 64, model="bowl", layers=layers, trainable_parameters=1),
                graphs=graphs,
            )
        )
    return found


def common(profiles: Sequence[Profile]) -> tuple[int, list[int], list[Level]]:
    """Return the number of layers, the splits that all profiles have, and the levels that all with levels have.

    Raises:
        ConfigError: the profiles are of different models, or share no split.
    """
    layers = {profile.bundle.layers for profile in profiles}
    if len(layers) != 1:
        raise ConfigError(f"the profiles are of models with {sorted(layers)} layers", "give profiles of one model")
    splits: list[set[int]] = []
    levels: list[set[Level]] = []
    for profile in profiles:
        kinds = {(graph.kind, graph.split) for graph in profile.graphs if graph.latencies}
        splits.append({s for k, s in kinds if k == "front" and s is not None and ("back", s) in kinds})
        trained = {graph.level for graph in profile.graphs if graph.kind == "train" and graph.latencies}
        if trained:
            levels.append({level for level in trained if level is not None})
    common = sorted(set.intersection(*splits))
    if not common:
        raise ConfigError("no split has a front and a back time in every profile", "give profiles of one bundle")
    return layers.pop(), common, ascending(set.intersection(*levels)) if levels else []
