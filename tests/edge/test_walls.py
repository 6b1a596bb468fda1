"""Borders: whatever bytes come in, the border's own error goes out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.layout import Parameter
from edge_runtime.bundle.manifest_file import decode_manifest
from edge_runtime.errors import BundleError, ConfigError, CoveyError, ProfileError, ProtocolError
from edge_runtime.files.tensor_file import map_tensors
from edge_runtime.protocol.delta import read_delta
from edge_runtime.protocol.messages import decode_device_report, decode_message, decode_plan
from edge_runtime.protocol.presence import Birth, DeviceState, ProfileMessage
from edge_runtime.protocol.profile_check import decode_profile
from edge_runtime.protocol.reports import ReportAck
from edge_runtime.protocol.round_log import decode_chain
from server.job.job import read_job
from server.simulation.traces import read_traces

if TYPE_CHECKING:
    from collections.abc import Callable


MSGPACK_BOMB = b"\x82\xa1v\x04\xa4junk" + b"\x91" * 5000 + b"\x00"
JSON_BOMB = b'{"format_version": 3, "v": 3, "junk": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
SMALL_JSON_BOMB = b'{"junk": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"

DECODERS: dict[str, tuple[Callable[[bytes], Any], type[CoveyError]]] = {
    "birth": (lambda data: decode_message(data, Birth), ProtocolError),
    "state": (lambda data: decode_message(data, DeviceState), ProtocolError),
    "profile message": (lambda data: decode_message(data, ProfileMessage), ProtocolError),
    "ack": (lambda data: decode_message(data, ReportAck), ProtocolError),
    "plan": (decode_plan, ProtocolError),
    "report": (decode_device_report, ProtocolError),
    "replay logs": (decode_chain, ProtocolError),
    "manifest": (decode_manifest, BundleError),
    "profile": (decode_profile, ProfileError),
}


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("bomb", [MSGPACK_BOMB, JSON_BOMB, SMALL_JSON_BOMB, b"\xff\xfe\xfd", b""])
def test_a_bomb_is_the_borders_own_error(decoder: str, bomb: bytes) -> None:
    decode, error = DECODERS[decoder]
    with pytest.raises(error) as caught:
        decode(bomb)
    assert caught.value.hint
    assert len(caught.value.what) < 600


@given(decoder=st.sampled_from(sorted(DECODERS)), data=st.binary(max_size=300))
def test_random_bytes_are_the_borders_own_error(decoder: str, data: bytes) -> None:
    decode, error = DECODERS[decoder]
    with pytest.raises(error):
        decode(data)


@pytest.mark.parametrize("read", [read_edge_config, read_job])
@pytest.mark.parametrize(
    "text", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "{b=" * 5000 + "1" + "}" * 5000, "a = 1e400", "\0", "a" * 100]
)
def test_a_nested_configuration_names_its_file(tmp_path: Path, read: Callable[[Path], object], text: str) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"some\.toml"):
        read(path)


def test_a_nested_trace_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "trace").write_bytes(b'{"at_s": 1, "device": "pi"}\n' + SMALL_JSON_BOMB + b"\n")
    with pytest.raises(ConfigError, match="line 2: "):
        read_traces(tmp_path / "trace")


# -- tensor files and deltas -----------------------------------------------------------------------------------------


def tensor_file(path: Path, header: bytes, data: bytes = b"\0" * 16) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(**changes: object) -> bytes:
    return json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        entry(data_offsets=[0]),
        entry().replace(b"16", b"1e400"),
        entry().replace(b"16", b"9" * 5000),
        entry(shape=[-2, -2]),
        entry(shape=[4, *[1] * 100]),
        entry(shape=None),
        entry(dtype=["F32"]),
        entry(dtype="F16"),
        entry(data_offsets=[-4, 12]),
        b'{"w": 3}',
        b'{"w": {}}',
        b"[]",
        b"{\xff}",
    ],
)
def test_a_broken_header_is_a_bundle_error_and_in_a_delta_a_protocol_error(tmp_path: Path, header: bytes) -> None:
    path = tensor_file(tmp_path / "delta.safetensors", header)
    with pytest.raises(BundleError, match=r"delta\.safetensors"):
        map_tensors(path)
    with pytest.raises(ProtocolError, match="the delta cannot be read"):
        read_delta(path, [Parameter("w", [4], 0, 0)], [0], 1)


@given(at=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 200))
def test_a_changed_or_cut_file_is_tensors_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int
) -> None:
    path = tensor_file(tmp_path_factory.mktemp("changed") / "w.safetensors", entry())
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(data[: len(data) - cut % len(data)])
    try:
        assert "w" in map_tensors(path) or at
    except BundleError as error:
        assert error.hint  # noqa: PT017 either is right; which one depends on the byte
