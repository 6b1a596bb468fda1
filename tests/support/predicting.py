"""Devices that predict, for tests: a state directory as a round leaves it, and requests over real HTTP."""

from __future__ import annotations

import http.client
import json
import shutil
from typing import TYPE_CHECKING, Any

from edge_runtime.bundle.adapter import adapter_sha256
from edge_runtime.store.journal import Journal
from edge_runtime.store.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.values import FloatVector


def leave_model(root: Path, bundle: Bundle, theta: FloatVector | None = None, **journal: Any) -> Store:
    """Leave in a state directory what a round leaves: the bundle, an adapter (the bundle's own), and the journal."""
    store = Store(root)
    store.make_folders()
    folder = store.bundles / bundle.sha256
    if not folder.is_dir():
        shutil.copytree(bundle.path, folder)
    theta = bundle.initial_adapter() if theta is None else theta
    sha256 = adapter_sha256(theta)
    made = root / "made.bin"
    made.write_bytes(theta.tobytes())
    store.keep_adapter(made, sha256)
    fields: dict[str, Any] = {"job": "job", "bundle_sha256": bundle.sha256, "adapter_sha256": sha256, **journal}
    store.write_journal(Journal(**fields))
    return store


def ask(
    port: int, path: str, body: Any, method: str = "POST", timeout_s: float = 120.0, **headers: str
) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Send a request; return the answer's status, object and headers. Bytes are sent as they are."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, data, {"Content-Type": "application/json", **names})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"{}"), dict(answer.getheaders())
    finally:
        connection.close()
