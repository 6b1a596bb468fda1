"""What is fuzzed on the device's side, and what both sides decode: messages, files of bundles, state files, tokens."""

from __future__ import annotations

import contextlib
import json
import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from harness import Target
from profiles import PROFILE, SHA
from signing import FLEET, fleet_of
from wire import LOG, MESSAGES, TOKENS

from edge_runtime.agent.config import read_edge_config
from edge_runtime.bundle.adapter import adapter_sha256, check_adapter, map_adapter
from edge_runtime.bundle.folder import open_bundle, open_named, verify_files
from edge_runtime.bundle.layout import total_size
from edge_runtime.bundle.manifest import MANIFEST_FILE
from edge_runtime.bundle.manifest_file import decode_manifest, encode_manifest
from edge_runtime.errors import BundleError, ConfigError, CoveyError, ProfileError, ProtocolError, StorageError
from edge_runtime.files.tensor_file import encode_tensors, map_tensors, read_metadata
from edge_runtime.protocol.delta import encode_delta, read_delta
from edge_runtime.protocol.messages import (
    MAX_PAYLOAD_BYTES,
    decode_device_report,
    decode_message,
    decode_plan,
    decode_report,
    encode_message,
)
from edge_runtime.protocol.profile_check import decode_profile, encode_profile
from edge_runtime.protocol.round_log import decode_chain, encode_chain, unpack_scalars
from edge_runtime.protocol.signed import SERVER
from edge_runtime.protocol.topics import topic_for
from edge_runtime.signing.verifier import Accepted
from edge_runtime.store.journal import Begun, Deaths, Journal, read_journal
from edge_runtime.store.journal_file import JournalFile
from edge_runtime.store.store import Store
from edge_runtime.store.trials import TRIALS_FILE, read_trials
from edge_runtime.trust.edge_file import write_fields
from edge_runtime.trust.token import PREFIX, _base64, _check_of, decode_token, encode_token

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle

Factory = Any
"""A context manager of a Target, made from an empty folder and a bundle that must not be changed."""


def _refuses(read: Callable[[], object], kind: type[CoveyError]) -> bool:
    try:
        read()
    except kind:
        return True
    return False


@contextlib.contextmanager
def messages(_folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """All decoders of messages: what one takes can be sent again, and is the same then."""
    kinds = sorted({type(message) for message in MESSAGES}, key=lambda kind: kind.__name__)

    def run(data: bytes) -> None:
        refused = 0
        for decode in (decode_plan, decode_report, decode_device_report):
            refused += _refuses(lambda decode=decode: decode(data), ProtocolError)  # type: ignore[misc]
        for kind in kinds:
            try:
                message = decode_message(data, kind)
            except ProtocolError:
                refused += 1
                continue
            assert len(data) <= MAX_PAYLOAD_BYTES
            again = decode_message(encode_message(message), kind)
            assert repr(again) == repr(message)  # NaN is not equal to itself
        if refused == len(kinds) + 3:
            raise ProtocolError("no decoder takes it")

    yield Target([encode_message(message) for message in MESSAGES], "msgpack", run, (ProtocolError,), 600)


@contextlib.contextmanager
def envelopes(_folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Signed messages: what is believed was sealed, bit for bit, for this topic."""
    fleet = fleet_of("pi", "other")
    sealed: set[bytes] = set()
    for number, message in enumerate(MESSAGES):
        speaker, kind = (SERVER, "plan") if number % 2 else ("pi", "report")
        topic = topic_for(FLEET, "pi", kind)  # type: ignore[arg-type]
        signer = fleet.signer(speaker, "session-of-speaker")
        sealed.add(topic.encode() + b"\0" + signer.seal(topic, encode_message(message), "session"))

    def run(data: bytes) -> None:
        topic, _, payload = data.partition(b"\0")
        for name in ("pi", SERVER):
            verifier = fleet.verifier(name, "session")
            try:
                result = verifier.check(topic.decode("utf-8", "replace"), payload)
            except ValueError as error:  # the topics that are not signed never come here
                assert "not signed" in str(error)  # noqa: PT017 else it is a crash
                continue
            if isinstance(result, Accepted):
                assert data in sealed
                return
        raise ProtocolError("nobody believes it")

    yield Target(sorted(sealed), "bytes", run, (ProtocolError,), 1500)


@contextlib.contextmanager
def profiles_and_logs(_folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Profiles in JSON and chains of replay logs in MessagePack; each decoder gets both."""

    def run(data: bytes) -> None:
        taken = 0
        with contextlib.suppress(ProfileError):
            profile = decode_profile(data)
            assert decode_profile(encode_profile(profile)) == profile
            taken += 1
        with contextlib.suppress(ProtocolError):
            for log in decode_chain(data):
                for device in log.devices:
                    rows = unpack_scalars(device.scalars, log.steps, log.rule_of(device).scalars_per_step)
                    assert all(math.isfinite(value) for row in rows for value in row)
            taken += 1
        if not taken:
            raise ProtocolError("no decoder takes it")

    yield Target([encode_profile(PROFILE), encode_chain([LOG, LOG])], "msgpack", run, (ProtocolError,), 600)


@contextlib.contextmanager
def tensors(folder: Path, bundle: Bundle) -> Iterator[Target]:
    """Tensor files and deltas: every view lies in the file, every delta is finite."""
    parameters, path = bundle.manifest.parameters, folder / "file.safetensors"
    n_layers = 3
    layers = sorted({p.layer for p in parameters if 0 <= p.layer < n_layers})
    movement = np.linspace(-1, 1, total_size(parameters), dtype=np.float32)
    delta = encode_delta(movement, parameters, layers, n_layers)
    small = encode_tensors({"a": np.zeros((2, 3), np.float32), "b": np.ones(1, np.float32)}, {"job": "x"})

    def run(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ProtocolError):
            assert np.isfinite(read_delta(path, parameters, layers, n_layers)).all()
        metadata = read_metadata(path)
        assert all(isinstance(text, str) for text in metadata.values())
        assert all(tensor.nbytes <= len(data) for tensor in map_tensors(path).values())

    yield Target([small, delta], "bytes", run, (BundleError,), 600)


@contextlib.contextmanager
def manifests(_folder: Path, bundle: Bundle) -> Iterator[Target]:
    """Manifests: what is accepted lists only paths within the bundle, and reads the same when written again."""

    def run(data: bytes) -> None:
        manifest = decode_manifest(data)
        for entry in manifest.files:
            parts = entry.path.split("/")
            assert not {"", ".", ".."} & set(parts), entry.path
            assert not {"\0", "\\"} & set(entry.path), entry.path
        assert decode_manifest(encode_manifest(manifest)) == manifest

    data = bundle.file(MANIFEST_FILE).read_bytes()
    yield Target([data], "json", run, (BundleError,), 250)


@contextlib.contextmanager
def bundles(folder: Path, bundle: Bundle) -> Iterator[Target]:
    """A bundle with one damaged file: it is refused, unless not a bit of it differs."""
    import shutil

    copy = folder / "bundle"
    shutil.copytree(bundle.path, copy)
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file())
    names = [name for name in names if (copy / name).stat().st_size < 200_000]
    whole = {name: (copy / name).read_bytes() for name in names}

    def run(data: bytes) -> None:
        name = names[data[0] % len(names)] if data else names[0]
        (copy / name).write_bytes(data[1:])
        try:
            opened = open_named(copy, bundle.sha256) if name == MANIFEST_FILE else open_bundle(copy)
            verify_files(opened)
            assert data[1:] == whole[name], f"a damaged {name} is accepted"
            opened.initial_adapter()
        finally:
            (copy / name).write_bytes(whole[name])

    seeds = [bytes([number]) + whole[name] for number, name in enumerate(names)]
    yield Target(seeds, "bytes", run, (BundleError,), 120)


@contextlib.contextmanager
def adapters(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Adapter files: accepted only under their own hash."""
    theta, path = np.linspace(-1, 1, 100, dtype=np.float32), folder / "adapter.bin"
    sha256 = adapter_sha256(theta)

    def run(data: bytes) -> None:
        path.unlink(missing_ok=True)  # the one before is mapped perhaps
        path.write_bytes(data)
        check_adapter(map_adapter(path, 100), sha256)
        assert data == theta.tobytes()

    yield Target([theta.tobytes()], "bytes", run, (BundleError,), 1500)


@contextlib.contextmanager
def tokens(_folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """Join tokens: a damaged word is none, and the content of one with a right sum is checked all the same."""
    contents = [msgspec.msgpack.encode(token) for token in TOKENS]
    words = {encode_token(token) for token in TOKENS}

    def run(data: bytes) -> None:
        word = data.decode("utf-8", "surrogateescape")
        if not word.startswith(PREFIX):
            word = PREFIX + _base64(data + _check_of(data))
            token = decode_token(word)
            assert token.server_url.startswith("https://")
            assert decode_token(encode_token(token)) == token
            return
        decode_token(word)
        assert word.strip() in words

    yield Target([*sorted(word.encode() for word in words), *contents], "msgpack", run, (ConfigError,), 3000)


@contextlib.contextmanager
def edge_files(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """edge.toml, as ``run`` reads it and ``join`` changes it: what is kept beside the changed fields stays."""
    path = folder / "edge.toml"
    fields = {"name": "pi", "broker": "mqtts://server:8883", "tls": {"ca_file": "edge-trust/ca.pem"}}
    plain = b'name = "pi"\nbroker = "mqtt://h"\nthreads = 2\ntags = ["a", "b"]\n# remark\n[data]\npath = "rows.jsonl"\n'
    tls = b'[tls]\nca_file = "ca.pem"\ncert_file = "c.pem"\nkey_file = "k.pem"\n'

    def run(data: bytes) -> None:
        path.write_bytes(data)
        read_edge_config(path)
        before = msgspec.toml.decode(data)
        write_fields(path, fields, "rows.jsonl", may_change=True)
        after = msgspec.toml.decode(path.read_bytes())
        assert all(repr(after[key]) == repr(value) for key, value in {**before, **fields}.items())

    yield Target([plain, plain + tls], "text", run, (ConfigError,), 150)


@contextlib.contextmanager
def state_files(folder: Path, _bundle: Bundle) -> Iterator[Target]:
    """The device's own files, damaged: each is read, or said to be damaged and set aside, and work goes on."""
    from edge_runtime.agent.kept_log import _read as read_log
    from edge_runtime.signing.marks import HelloFile
    from edge_runtime.signing.sequence import SequenceStore

    begun = Begun("job", SHA, 1, 0, "backprop", 3, 1.5, 9, None)
    journal = Journal(
        "job", SHA, SHA, b"report", acknowledged=True, begun=begun, deaths=Deaths(begun, 2, 1), personal_sha256=SHA
    )
    line = b'{"number":7,"at_s":1.5,"level":"INFO","text":"a line"}\n'
    hello = json.dumps({"key_id": "QUFBQUFBQUE=", "sequence": 5, "body_sha256": SHA, "v": 1}).encode()
    state = folder / "state"

    def run(data: bytes) -> None:
        for stale in state.glob("*"):
            if stale.is_file():
                stale.unlink()
        store, path = Store(state), state / "journal.json"
        state.mkdir(exist_ok=True)
        path.write_bytes(data)
        is_damaged = _refuses(lambda: read_journal(path), StorageError)
        file = JournalFile(store)
        assert not is_damaged or file.entries == Journal()
        file.begin_plan("next", SHA, SHA, None)
        assert read_journal(path).job == "next"
        (state / TRIALS_FILE).write_bytes(data)
        _refuses(lambda: read_trials(state), StorageError)
        for name in ("numbers.json", "hello.json", "log"):
            (state / name).write_bytes(data)
        numbers = SequenceStore(state / "numbers.json", lambda: 1000)
        with contextlib.suppress(StorageError):
            first = numbers.take()
            assert numbers.take() == first + 1
        HelloFile(state / "hello.json").keep(b"A" * 8, 1, b"body")
        assert HelloFile(state / "hello.json").heard is not None
        ascending = [found.number for found in read_log(state / "log")]
        assert ascending == sorted(set(ascending))

    seeds = [
        msgspec.json.encode(journal),
        b"{}",
        line * 3,
        hello,
        b'{"reserved":7,"v":1}',
        b'{"passed":[],"failed":null}',
    ]
    yield Target(seeds, "json", run, (), 30)


DEVICE_TARGETS: dict[str, Factory] = {
    "messages": messages,
    "envelopes": envelopes,
    "profiles-and-logs": profiles_and_logs,
    "tensors": tensors,
    "manifests": manifests,
    "bundles": bundles,
    "adapters": adapters,
    "tokens": tokens,
    "edge-files": edge_files,
    "state-files": state_files,
}
