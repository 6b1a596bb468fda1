"""Borders: whatever bytes come in, the border's own error goes out; and `main` ends every exception as one line."""

from __future__ import annotations

import argparse
import errno
import json
import stat
import unicodedata
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import output
from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.layout import Parameter
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import decode_manifest
from edge_runtime.errors import (
    BundleError,
    ConfigError,
    CoveyError,
    DataError,
    FaultError,
    NetworkError,
    ProfileError,
    ProtocolError,
    StorageError,
    TrainingError,
    as_covey_error,
    wall,
)
from edge_runtime.files.tensor_file import map_tensors
from edge_runtime.network.address import parse_broker
from edge_runtime.network.fetch import blob_base
from edge_runtime.network.http_address import check_http_url
from edge_runtime.protocol.delta import read_delta
from edge_runtime.protocol.messages import (
    Birth,
    DeviceState,
    ProfileMessage,
    ReportAck,
    decode_device_report,
    decode_message,
    decode_plan,
)
from edge_runtime.protocol.profile_check import decode_profile
from edge_runtime.protocol.round_log import decode_chain
from edge_runtime.protocol.topics import device_of, topic_for
from server.job.job import read_job
from server.simulation.traces import read_traces

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle

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


# -- manifests -------------------------------------------------------------------------------------------------------


def changed(bundle: Bundle, change: Callable[[dict[str, Any]], None]) -> bytes:
    manifest = json.loads(bundle.file(MANIFEST_FILE).read_bytes())
    change(manifest)
    return json.dumps(manifest).encode()


def large_layout(manifest: dict[str, Any]) -> None:
    last = manifest["parameters"][-1]
    last["shape"] = [2**40]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(junk=[]), "unknown field"),
        (large_layout, "not in the layout|its initial adapter"),
        (lambda m: m["parameters"][0].update(shape=[2**80]), "not valid"),
        (lambda m: m["golden"].update(batches=0), "batches"),
        (lambda m: m["golden"].update(batches=10**9), "batches"),
        (lambda m: m["golden"].update(tolerance=1e6), "tolerance"),
        (lambda m: m["golden"].update(tolerance=0), "tolerance"),
        (lambda m: m["golden"].update(seed=-1), "seed"),
        (lambda m: m["model"].update(layers=10**9), "layers"),
        (lambda m: m["task"].update(max_tokens=10**9), "max_tokens"),
        (lambda m: m["task"].update(max_tokens=0), "max_tokens"),
        (lambda m: m["task"].update(pad_token_id=-1), "pad_token_id"),
        (lambda m: m["files"][0].update(size_bytes=-1), "size_bytes"),
        (lambda m: m["files"][0].update(path="a/" * 200 + "b"), "unsafe path"),
        (lambda m: m["files"].append(dict(m["files"][0], path="graphs")), "as a file and as a folder"),
        (lambda m: m["files"].extend(dict(m["files"][0], path=f"f{n}") for n in range(20_000)), "files"),
        (lambda m: m["graphs"].append(m["graphs"][0]), "2 times"),
    ],
)
def test_a_manifest_has_bounds(tiny_bundle: Bundle, change: Callable[[dict[str, Any]], None], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        decode_manifest(changed(tiny_bundle, change))


def test_a_manifest_with_as_many_files_and_graphs_as_allowed_is_checked_in_linear_time(tiny_bundle: Bundle) -> None:
    """With a search through the list for each graph this would be 2.5e8 comparisons; it times out then."""

    def fill(manifest: dict[str, Any]) -> None:
        for name in ("files", "graphs"):
            first = manifest[name][0]
            for n in range(16_000):
                if name == "files":
                    manifest[name].append(dict(first, path=f"f{n}"))
                else:
                    manifest[name].append(dict(first, file=f"f{n}", split=3 + n % 4000, kind="front", inputs=[]))

    def count_only(manifest: dict[str, Any]) -> None:
        fill(manifest)
        manifest["graphs"] = manifest["graphs"][: len(manifest["graphs"]) - 12_000]

    assert len(decode_manifest(changed(tiny_bundle, count_only)).files) > 16_000


@given(data=st.data())
def test_a_manifest_with_one_value_replaced_is_a_manifest_or_an_error(tiny_bundle: Bundle, data: st.DataObject) -> None:
    odd: st.SearchStrategy[Any] = st.sampled_from([None, -1, 0, 2**63, 1e300, "", "../x", [], {}, [[]], True])

    def replace_one(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(at[key], (dict, list)) or not at[key] or data.draw(st.booleans()):
                at[key] = data.draw(odd)
                return
            at = at[key]

    try:
        decode_manifest(changed(tiny_bundle, replace_one))
    except BundleError as error:
        assert error.hint  # noqa: PT017 either is right; which one depends on the value


# -- addresses and names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1:8080",
        "http://server/früh",
        "http://server..local",
        "http://.local",
        "http://früh.local",
        "http://server:99999",
        "http://server:port",
        "http://a b/",
        "http://server/a b",
        "http://server/\n",
        "http://user@server",
        "http://server?x=1",
        "http://server#x",
        "http://",
        "ftp://server",
        "server:8080",
        "",
        f"http://{'x' * 64}.local",
    ],
)
def test_an_address_that_no_request_can_be_sent_to_is_refused_everywhere(tmp_path: Path, url: str) -> None:
    from server.cli import main

    with pytest.raises(ConfigError, match="is not an http address"):
        check_http_url(url)
    if url != "http://":  # a plan's address may lack the host
        with pytest.raises(NetworkError):
            blob_base(url + "/blobs", "broker", None)
    if url:
        config = tmp_path / "edge.toml"
        config.write_text(
            f'name = "pi"\nbroker = "mqtt://x"\nserver_url = {json.dumps(url)}\n[data]\npath = "rows.jsonl"\n'
        )
        with pytest.raises(ConfigError, match="is not an http address"):
            read_edge_config(config)
    assert main(["serve", "--bundle", "b", "--job", "j", "--public-url", url]) == ConfigError.exit_code


@pytest.mark.parametrize(
    "url",
    ["http://server:8080", "https://server.example./covey/", "http://[fe80::1%25eth0]:80", "http://10.0.0.1/a%20b"],
)
def test_a_good_address_loses_its_last_slash_only(url: str) -> None:
    assert check_http_url(url) == url.rstrip("/")


@given(url=st.one_of(st.text(max_size=30), st.text(max_size=20).map("http://".__add__)))
def test_an_address_that_is_taken_can_be_asked(url: str) -> None:
    try:
        taken = check_http_url(url)
    except ConfigError:
        return
    request = urllib.request.Request(f"{taken}/blobs/{'0' * 64}")  # noqa: S310 nothing is sent
    assert request.host.encode("ascii")
    request.host.split(":")[0].encode("idna")
    assert request.selector.encode("ascii")


def test_a_plan_without_a_host_means_the_brokers_host_in_ipv6_too() -> None:
    assert blob_base("http://:8080/blobs", "::1", None) == "http://[::1]:8080/blobs"


@pytest.mark.parametrize(
    "url", ["mqtt://[::1:1883", "mqtt://server:port", "mqtt://", "http://server", "mqtt://x:70000"]
)
def test_a_brokers_address_that_is_none_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="broker"):
        parse_broker(url)


@pytest.mark.parametrize("name", ["pi\n", "pi\r", "\x1b[2J", "pi\x00", "", "-pi", "a" * 64, "#", "a b"])
def test_a_name_ends_where_it_seems_to_end(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError, match="cannot be the name"):
        topic_for("default", name, "birth")
    with pytest.raises(ProtocolError, match="cannot be the name"):
        device_of(f"covey/v1/default/{name}/birth")
    config = tmp_path / "edge.toml"
    config.write_text(f'name = {json.dumps(name)}\nbroker = "mqtt://x"\n[data]\npath = "rows.jsonl"\n')
    with pytest.raises(ConfigError, match=r"name|cannot"):
        read_edge_config(config)


def test_a_topic_without_a_device_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="names no device"):
        device_of("covey/v1/default")


@pytest.mark.parametrize("sha256", ["0" * 64 + "\n", "0" * 63, "0" * 63 + "\n", "G" * 64])
def test_a_hash_ends_where_it_seems_to_end(tiny_bundle: Bundle, sha256: str) -> None:
    with pytest.raises(BundleError, match="not valid"):
        decode_manifest(changed(tiny_bundle, lambda m: m["files"][0].update(sha256=sha256)))


# -- the outermost wall ----------------------------------------------------------------------------------------------


def run_main(error: BaseException, *flags: str) -> int:
    parser = argparse.ArgumentParser(prog="covey-x")
    output.add_format(parser)

    def fail(_args: argparse.Namespace) -> int:
        raise error

    parser.set_defaults(run=fail)
    return output.main(parser, list(flags))


def test_a_fault_is_one_line_and_a_file_that_only_its_owner_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_main(KeyError("boom"), "--format", "json") == FaultError.exit_code == 70
    said = capsys.readouterr()
    assert said.err.startswith("covey-x: this is a fault of Covey ('boom')\n  what to do: please report it with ")
    assert said.err.count("\n") == 2
    assert "Traceback" not in said.err
    assert json.loads(said.out)["exit_code"] == 70
    (saved,) = tmp_path.iterdir()
    assert str(saved) in said.err
    assert "Traceback" in saved.read_text()
    assert "KeyError" in saved.read_text()
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600


def test_a_fault_is_in_the_log_with_verbose_or_where_no_file_can_be_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(KeyError("boom"), "-v") == 70
    assert "Traceback" in caplog.text
    assert "traceback above" in capsys.readouterr().err
    caplog.clear()
    monkeypatch.setattr("tempfile.tempdir", "/nowhere/at/all")
    assert run_main(RecursionError("maximum recursion depth")) == 70
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 8, "no file descriptor left"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), 8, "disk full while writing /x/y"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 8, "/x/y: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/x/y"), 8, "/x/y: Is a directory"),
        (MemoryError(), 9, "too little free memory"),
        (DataError("the file is empty"), 4, "the file is empty"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_covey(
    error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(error) == code
    said = capsys.readouterr().err
    assert words in said
    assert "fault of Covey" not in said


def test_a_wall_lets_coveys_own_errors_through() -> None:
    with pytest.raises(StorageError), wall(ProtocolError):
        raise StorageError("disk full")
    with pytest.raises(ProtocolError, match="ValueError"), wall(ProtocolError):
        raise ValueError
    with pytest.raises(KeyboardInterrupt), wall(ProtocolError):
        raise KeyboardInterrupt


def test_an_errors_public_text_never_quotes_an_exception() -> None:
    private = "private words"
    assert private not in FaultError(KeyError(private)).public
    assert isinstance(as_covey_error(MemoryError(private)), TrainingError)
    assert private not in as_covey_error(MemoryError(private)).public


# -- terminals -------------------------------------------------------------------------------------------------------


@given(text=st.text())
def test_nothing_that_is_printed_acts_on_a_terminal(text: str) -> None:
    shown = output.printable(text)
    assert all(character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs") for character in shown)
    assert "\n" not in output.one_line(text)
    shown.encode()


def test_tables_and_logs_escape_what_a_device_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.table(["device"], [["\x1b[2J\nroot"]]) == "device\n\\x1b[2J\\nroot"
    assert run_main(DataError("\x1b[2Jcleared")) == 4
    assert "\x1b" not in capsys.readouterr().err
