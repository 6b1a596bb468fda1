"""Hints follow causes: each cause's hint says what mends it, and nothing that belongs to another cause."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import onnxruntime
import pytest

from edge_runtime.bundle.memory_need import check_level
from edge_runtime.data.examples import read_rows
from edge_runtime.engines.onnx_engine import load_hint, make_session
from edge_runtime.errors import BundleError, CoveyError, DataError, TrainingError, as_covey_error, storage_error
from edge_runtime.network.cause import Place
from edge_runtime.network.causes import cause_of_error, denied, local_only, loss_cause, refusal_cause
from edge_runtime.network.http_causes import Answer, answer_cause
from server.rounds.failure import failure_hint
from server.storage.records import OfferRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle

BROKER = Place("broker", "host", 8883, now_s=0.0)
SERVER = Place("server", "host", 8080, now_s=0.0)
CLOCK, NETWORK, LISTENER = "timedatectl", "firewall", "listener"
AUTHORITY, MEMORY, SPACE = "ca_file", "memory", "space"
OWNER, ROWS, UPGRADE, DEADLINE = "permissions", "data check", "--upgrade onnxruntime", "deadline_s"
WORDS = (CLOCK, NETWORK, LISTENER, AUTHORITY, MEMORY, SPACE, OWNER, ROWS, UPGRADE, DEADLINE)
"""Words of hints that must not stand where the cause is another one."""


def verify(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "OpenSSL's words"
    return error


def of(error: BaseException, place: Place = BROKER) -> CoveyError:
    return cause_of_error(error, place).error()


def lost(waiting_bytes: int, closed_soon: int) -> CoveyError:
    cause = loss_cause(None, BROKER, identity="x", waiting_bytes=waiting_bytes, closed_soon=closed_soon)
    return cause.error()


def refused(code: int, user: str | None) -> CoveyError:
    return refusal_cause(code, "words", BROKER, user=user, identity="covey-default-pi").error()


def system(number: int) -> CoveyError:
    return as_covey_error(OSError(number, os.strerror(number), "/state/x"))


def disk(number: int) -> CoveyError:
    return storage_error(OSError(number, os.strerror(number)), "/state/x")


def proxy(code: int) -> CoveyError:
    return answer_cause(Answer(code, "PATCH", "http://host/blobs/x", "<html>"), SERVER).error()


def onnx(said: str) -> CoveyError:
    return BundleError("ONNX Runtime cannot load it", load_hint(said))


def failed(*reasons: tuple[str, str | None]) -> CoveyError:
    offers = [
        OfferRecord(0, 0, f"d{number}", state, detail, None, None, None, None, None, None, 0, 0)
        for number, (state, detail) in enumerate(reasons)
    ]
    return CoveyError("round 0 failed", failure_hint(offers, 0))


CAUSES: dict[str, tuple[Callable[[], CoveyError], tuple[str, ...]]] = {
    "clock in the past": (lambda: of(verify(9)), (CLOCK,)),
    "clock in the future, or a certificate that has expired": (lambda: of(verify(10)), (CLOCK,)),
    "unknown authority": (lambda: of(verify(20)), (AUTHORITY,)),
    "certificate of another name": (lambda: of(verify(62)), ("subjectAltName",)),
    "a broker that is not started, or listens on localhost": (
        lambda: of(ConnectionRefusedError(errno.ECONNREFUSED, "refused")),
        (LISTENER, "start the broker"),
    ),
    "a server that is not started": (
        lambda: of(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), SERVER),
        ("start covey serve",),
    ),
    "a broker that listens on localhost only": (lambda: local_only(BROKER).error(), (LISTENER,)),
    "no way there": (lambda: of(OSError(errno.EHOSTUNREACH, "No route to host")), (NETWORK,)),
    "no answer": (lambda: of(TimeoutError("timed out")), (NETWORK,)),
    "an unknown name": (lambda: of(socket.gaierror(socket.EAI_NONAME, "unknown")), ("write the IP address",)),
    "no user": (lambda: refused(135, None), ("mqtt://user:password@host",)),
    "a wrong password": (lambda: refused(134, "pi"), ("correct user and password",)),
    "an access list": (lambda: denied(BROKER, "write", "a/b", "pi").error(), ("topic write a/b",)),
    "two of a name": (lambda: lost(300, 3), ("a name of its own",)),
    "a message over the broker's limit": (lambda: lost(60_000, 3), ("max_packet_size",)),
    "one loss": (lambda: lost(0, 1), ("it is made again",)),
    "a proxy with small bodies": (lambda: proxy(413), ("client_max_body_size",)),
    "a proxy without a server": (lambda: proxy(502), ("start covey serve",)),
    "a runtime too old for an opset": (lambda: onnx("ValidateOpsetForDomain … only *guarantees* …"), (UPGRADE,)),
    "a runtime too old for the format": (lambda: onnx("Unsupported model IR version: 99"), (UPGRADE,)),
    "a runtime without an operator": (lambda: onnx("No Op registered for X"), (UPGRADE,)),
    "a graph that does not fit memory": (lambda: onnx("std::bad_alloc"), (MEMORY,)),
    "a damaged graph": (lambda: onnx("INVALID_PROTOBUF : parsing failed"), ("damaged", "fetch the bundle again")),
    "memory that ran out": (lambda: as_covey_error(MemoryError()), (MEMORY,)),
    "memory that the system refused": (lambda: system(errno.ENOMEM), (MEMORY,)),
    "no descriptors": (lambda: system(errno.EMFILE), ("LimitNOFILE",)),
    "a full disk": (lambda: system(errno.ENOSPC), (SPACE,)),
    "a full disk, of a write": (lambda: disk(errno.ENOSPC), (SPACE,)),
    "a used-up quota": (lambda: disk(errno.EDQUOT), ("quota", SPACE)),
    "a read-only disk": (lambda: disk(errno.EROFS), ("mount it writable",)),
    "a read-only disk, of a read": (lambda: system(errno.EROFS), ("mount it writable",)),
    "a failing disk": (lambda: disk(errno.EIO), ("dmesg",)),
    "a folder of somebody else": (lambda: disk(errno.EACCES), (OWNER,)),
    "a path that is gone": (lambda: system(errno.ENOENT), ("exists",)),
    "a connection that broke": (lambda: system(errno.ECONNRESET), ("covey-edge doctor",)),
    "all refused": (
        lambda: failed(("refused", "no space left on device\n  what to do: free some"), ("refused", "no space left")),
        ("no space left on device (1 of 2 offers)",),
    ),
    "all late": (lambda: failed(("accepted", None), ("accepted", None)), (DEADLINE,)),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_each_hint_is_of_its_cause(cause: str) -> None:
    make, wanted = CAUSES[cause]
    error = make()
    for word in wanted:
        assert word in error.hint
    strange = [word for word in WORDS if word in error.hint and not any(word in said for said in wanted)]
    assert strange == []
    assert len(error.hint) < 400


def test_each_class_of_wrong_rows_says_where_to_look(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "secret"}\n')
    with pytest.raises(DataError) as raised:
        read_rows(path, ["good", "bad"])
    assert "covey-edge data check" in raised.value.public
    assert "secret" not in raised.value.public


@pytest.mark.parametrize(
    ("content", "words"), [(None, "gone"), (b"garbage!!!", "damaged"), (b"\x08\x63", "damaged"), (b"", "damaged")]
)
def test_what_onnx_runtime_itself_says_is_understood(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "graph.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError) as raised:
        make_session(str(path), 1)
    assert words in raised.value.hint


@pytest.mark.parametrize(("opset", "ir_version", "operator"), [(99, 8, "Relu"), (13, 99, "Relu"), (13, 8, "NewOp")])
def test_a_graph_of_a_newer_runtime_asks_for_an_upgrade(
    tmp_path: Path, opset: int, ir_version: int, operator: str
) -> None:
    onnx_package = pytest.importorskip("onnx")
    helper, kind = onnx_package.helper, onnx_package.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(name, kind, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError) as raised:
        make_session(str(tmp_path / "graph.onnx"), 1)
    assert UPGRADE in raised.value.hint
    assert onnxruntime.__version__ in raised.value.hint


def test_a_level_that_does_not_fit_says_what_needs_less(leveled: Bundle) -> None:
    manifest = leveled.manifest
    with pytest.raises(TrainingError) as raised:
        check_level(manifest, manifest.levels[0], 1, bytes_free=1)
    assert "1 are free" in raised.value.what
    assert "lower the level" in raised.value.hint
    assert MEMORY in raised.value.hint
