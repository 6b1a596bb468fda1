"""Profiles that no machine measured, for tests of what is done with profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_runtime.protocol.messages import encode_message
from edge_runtime.protocol.presence import ProfileMessage
from edge_runtime.protocol.profile import (
    BoardFacts,
    BundleFacts,
    GraphProfile,
    Latency,
    Profile,
    Provenance,
    Rates,
    Reading,
    Sustained,
)

if TYPE_CHECKING:
    from edge_runtime.bundle.folder import Bundle

SHA = "ab" * 32
SHAPE = {"batch_size": 1, "tokens": 16}
READING = Reading(temperature_c=50.0, throttled=False)
PROFILE = Profile(
    device="pi",
    facts=BoardFacts(board="raspberry-pi-5", cores=4),
    measured=Provenance(
        measured_at="2026-01-01T00:00:00+00:00",
        seconds=9.0,
        wall_seconds=9.0,
        clock="perf_counter",
        covey_version="0",
        commit=None,
        versions={"numpy": "2"},
        threads=0,
        warm_up=2,
        before=READING,
        after=READING,
    ),
    bundle=BundleFacts(sha256=SHA, model="bert", layers=6, trainable_parameters=100),
    graphs=[
        GraphProfile(
            kind="train",
            engine="onnxruntime",
            level=3,
            load_s=0.5,
            peak_rss_bytes=9,
            base_rss_bytes=4,
            latencies=[Latency(median_s=0.5, low_s=0.4, high_s=0.7, count=5, power_w=3.5, **SHAPE)],
            sustained=Sustained(
                seconds=60.0, first_s=0.5, last_s=0.6, count=99, before=READING, after=READING, **SHAPE
            ),
        ),
    ],
    rates=Rates(replay_parameters_per_s=1e9),
)


SHAPES = ((1, 8), (2, 16))


def made_profile(bundle: Bundle, times: float = 1.0, *, board: str = "made-up", **fields: Any) -> Profile:
    """Return a profile that says it was measured: 1 ms a token and graph, times ``times``."""
    graphs = [
        GraphProfile(
            kind=graph.kind,
            engine=graph.runtime,
            split=graph.split,
            level=graph.level,
            load_s=0.1,
            peak_rss_bytes=100_000_000,
            parameter_bytes=2_000_000,
            latencies=[
                Latency(
                    batch_size=b,
                    tokens=t,
                    median_s=1e-3 * b * t * times,
                    low_s=0.9e-3 * b * t * times,
                    high_s=1.2e-3 * b * t * times,
                    count=5,
                )
                for b, t in SHAPES
            ],
        )
        for graph in bundle.manifest.graphs
    ]
    measured = Provenance(
        measured_at="2026-01-01T00:00:00+00:00",
        seconds=1000.0,
        wall_seconds=1000.0,
        clock="perf_counter, 1e-09 s",
        covey_version="0",
        commit=None,
        versions={},
        threads=1,
        warm_up=2,
        before=Reading(load=0.1),
        after=Reading(),
    )
    manifest = bundle.manifest
    facts = BundleFacts(
        sha256=bundle.sha256,
        model=manifest.model.name,
        layers=manifest.model.layers,
        trainable_parameters=manifest.parameters[-1].stop,
    )
    made: dict[str, Any] = {
        "device": "pi",
        "facts": BoardFacts(board=board, cores=4),
        "measured": measured,
        "bundle": facts,
        "graphs": graphs,
        "rates": Rates(matmul_flop_per_s=1e11, copy_bytes_per_s=1e10),
    }
    return Profile(**made | fields)


def payload_of(profile: Profile, device: str = "pi") -> bytes:
    """Return what a device publishes."""
    return encode_message(ProfileMessage(device=device, profile=profile))
