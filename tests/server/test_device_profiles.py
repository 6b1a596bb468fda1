"""``device_profiles/``: every file is valid and names its source; modelled times follow from their sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from repository import ROOT

from edge_runtime.protocol.profile import Profile
from edge_runtime.protocol.profile_check import decode_profile, encode_profile, json_schema
from edge_runtime.protocol.profile_text import profile_text
from server.profiles.board_model import BOARD_FILE, model_profile, read_board
from server.profiles.files import LATENCY_FILE, read_profile
from server.simulation.run import SimulateOptions, simulate

PROFILES = ROOT / "device_profiles"
SCHEMA = PROFILES / "profile.schema.json"
FOLDERS = sorted(path for path in PROFILES.iterdir() if path.is_dir())
WANTED = {
    "raspberry-pi-4",
    "raspberry-pi-5",
    "jetson-orin-nano",
    "jetson-agx-orin",
    "android-phone-class",
    "qemu-arm64",
    "ci-machine",
}


@pytest.fixture(scope="module")
def schema() -> Any:
    found = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(found)
    return found


@pytest.fixture(scope="module")
def reference() -> Profile:
    return read_profile(PROFILES / "ci-machine")


def test_the_schema_is_that_of_the_structs() -> None:
    """If not: python -c 'from edge_runtime.protocol.profile_check import *; print(json_schema().decode(), end="")'."""
    assert SCHEMA.read_bytes() == json_schema()


def test_all_boards_are_there() -> None:
    assert {folder.name for folder in FOLDERS} >= WANTED


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_is_valid_and_says_how_it_is_known(folder: Path, schema: Any, reference: Profile) -> None:
    data = (folder / LATENCY_FILE).read_bytes()
    jsonschema.validate(json.loads(data), schema, cls=jsonschema.Draft202012Validator)
    profile = decode_profile(data)
    assert profile.facts.board == folder.name
    assert profile.device is None
    table = profile_text(profile).split("\n\n")[1].splitlines()[1:]
    if profile.modelled is not None:
        assert encode_profile(model_profile(read_board(folder / BOARD_FILE), reference)) == data
        assert all(source.url.startswith("https://") for source in profile.modelled.sources)
        assert not any("measured" in line for line in table)
    else:
        assert all(" measured " in line for line in table)


@pytest.mark.parametrize(
    "change",
    [
        {"measured": None, "modelled": None},
        {"format_version": 2},
        {"graphs": [{"kind": "front"}]},
        {"extra": 1},
        {"facts": {"board": "Not A Slug"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_schema_refuses_what_the_structs_refuse(change: dict[str, Any], schema: Any) -> None:
    fields = json.loads((PROFILES / "ci-machine" / LATENCY_FILE).read_bytes()) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(fields, schema, cls=jsonschema.Draft202012Validator)


def test_a_fleet_of_these_boards_can_be_simulated() -> None:
    """Every board gets work that its own times allow; the emulated one is too slow for all but the smallest."""
    paths = tuple(folder for folder in FOLDERS if folder.name != "qemu-arm64")
    options = SimulateOptions(devices=12, rounds=3, cohort=6, drop_out=0.0, throttle=0.0, profiles=paths)
    first, again = simulate(options), simulate(options)
    assert first is not None
    assert again is not None
    assert first["rounds"] == 3
    assert first["adapter_sha256"] == again["adapter_sha256"]
    assert {name for name in first["arms"] if name.startswith("level")} <= {"level 2", "level 3", "level 4", "level 6"}
