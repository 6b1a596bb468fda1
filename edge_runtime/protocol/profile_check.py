"""Whether a profile can be believed: what types cannot say, and what it lacks of a bundle; its JSON and its schema."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.errors import ProfileError, wall
from edge_runtime.protocol.profile import Profile

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest

_CLOCKS_APART_S = 2.0
_CLOCKS_APART = 0.01


def check_profile(profile: Profile) -> list[str]:
    """Check what types cannot say; return what is doubtful but can be used.

    Raises:
        ProfileError: both or neither of measured and modelled, a graph twice, quantiles in the wrong order, a clock
            that jumped while runs were timed.
    """
    if (profile.measured is None) == (profile.modelled is None):
        raise ProfileError("a profile is either measured or modelled", "make it with: covey-edge profile")
    seen = set()
    for graph in profile.graphs:
        key = (graph.name, graph.engine)
        if key in seen:
            raise ProfileError(f"the profile lists {graph.name} on {graph.engine} twice", "measure it again")
        seen.add(key)
        for latency in graph.latencies:
            if profile.modelled is not None and latency.count is not None:
                raise ProfileError(f"{graph.name} is modelled but counts timed runs", "model it again")
            low, high = latency.low_s or latency.median_s, latency.high_s or latency.median_s
            if not low <= latency.median_s <= high:
                raise ProfileError(f"{graph.name}: the median is not between the percentiles", "measure it again")
    if profile.measured is not None:
        # Half of the runs took their median at least, one after the other.
        least_s = sum(((x.count or 0) // 2) * x.median_s for graph in profile.graphs for x in graph.latencies)
        if least_s > profile.measured.seconds + _CLOCKS_APART_S:
            raise ProfileError(
                f"its runs took {least_s:.0f} s, all of it {profile.measured.seconds:.0f} s: a clock jumped",
                "measure it again",
            )
    return _doubts(profile)


def _doubts(profile: Profile) -> list[str]:
    measured = profile.measured
    doubts: list[str] = []
    if measured is None:
        return doubts
    apart_s = abs(measured.wall_seconds - measured.seconds)
    if measured.wall_seconds < 0 or apart_s > _CLOCKS_APART_S + _CLOCKS_APART * measured.seconds:
        doubts.append(
            f"the wall clock moved {measured.wall_seconds:.0f} s in {measured.seconds:.0f} s: its date may be wrong; "
            "times are of the monotonic clock"
        )
    if measured.before.throttled or measured.after.throttled:
        doubts.append("the board was throttled: on a cool board, or with a better supply, it is faster")
    return doubts


def missing_graphs(profile: Profile, manifest: Manifest, bundle_sha256: str) -> list[str]:
    """Return the graphs of a bundle that a profile says nothing about.

    Raises:
        ProfileError: it is the profile of another bundle.
    """
    if profile.bundle.sha256 != bundle_sha256:
        raise ProfileError(
            f"this is a profile of bundle {profile.bundle.sha256[:12]} ({profile.bundle.model}), "
            f"not of {bundle_sha256[:12]} ({manifest.model.name})",
            "measure this bundle: covey-edge profile --bundle BUNDLE",
        )
    known = {graph.name for graph in profile.graphs if graph.latencies}
    names = []
    for graph in manifest.graphs:
        if graph.name not in known and graph.name not in names:
            names.append(graph.name)
    return names


def encode_profile(profile: Profile) -> bytes:
    """Return a profile as JSON."""
    return msgspec.json.format(msgspec.json.encode(profile), indent=1) + b"\n"


def decode_profile(data: bytes) -> Profile:
    """Read a profile from JSON and check it.

    Raises:
        ProfileError: not JSON, another version, a missing or unknown field, a time that is not positive or not finite.
    """
    with wall(
        lambda cause: ProfileError(f"the profile is not valid: {cause}", "make it again with: covey-edge profile")
    ):
        profile = msgspec.json.decode(data, type=Profile)
    check_profile(profile)
    return profile


def _with_clean_descriptions(schema: Any) -> Any:  # noqa: ANN401 JSON
    """Return a schema whose descriptions, which are docstrings, are indented alike by every version of msgspec."""
    clean = _with_clean_descriptions
    if isinstance(schema, list):
        return [clean(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: inspect.cleandoc(value) if name == "description" and isinstance(value, str) else clean(value)
        for name, value in schema.items()
    }


def json_schema() -> bytes:
    """Return the JSON Schema of a profile, which requires that it is either measured or modelled.

    device_profiles/profile.schema.json is this function's output; a test compares the two.
    """
    one_is_null = [{"properties": {name: {"type": "null"}}} for name in ("measured", "modelled")]
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **_with_clean_descriptions(msgspec.json.schema(Profile)),
        "oneOf": one_is_null,
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=1) + b"\n"
