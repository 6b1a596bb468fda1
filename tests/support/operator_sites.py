"""A server's API and pages over real HTTP, with jobs that are queued and a virtual fleet; no broker, no devices."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx

from server.access.gate import Access
from server.access.operators import OperatorFile
from server.api.app import PREFIX, make_api
from server.compose import compose_coordinator, open_stores
from server.dashboard.app import make_dashboard
from server.errors import JobError
from server.evaluation import Evaluation, InlineEvaluator
from server.queue.operations import Operations
from server.queue.supervisor import Supervisor
from server.rollouts.rollouts import Rollouts
from server.rounds.services import Services
from server.simulation.virtual import VirtualTransport, VirtualWorld
from server.web.http_app import serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from server.access.gate import Proxy
    from server.queue.supervisor import Prepared
    from server.storage.ledger import Ledger
    from server.storage.records import JobRecord

ALICE, BOB = "alice-has-this-token-0123456789", "bob-has-this-other-token-012345"
_FORM_TOKEN = re.compile(r'name="form_token" value="([0-9a-f]{64})"')
_SEEN = re.compile(r'name="seen" value="([0-9]+)"')


@dataclass
class Clock:
    """A clock that tests put forward."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Site:
    """A server: where it is, its ledger, the clock of its sessions, and the file of its operators."""

    url: str
    ledger: Ledger
    clock: Clock
    operators: Path

    def browser(self, **headers: str) -> httpx.Client:
        """A browser without a session, which says from where its forms are."""
        return httpx.Client(base_url=self.url, headers={"origin": self.url, **headers}, timeout=60)

    @contextlib.contextmanager
    def signed_in(self, token: str = ALICE) -> Iterator[httpx.Client]:
        with self.browser() as browser:
            assert sign_in(browser, token).status_code == 303
            yield browser

    def command(self, token: str = ALICE) -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"}
        return httpx.Client(base_url=f"{self.url}{PREFIX}", headers=headers, timeout=60)


def sign_in(browser: httpx.Client, token: str, next_path: str = "") -> httpx.Response:
    page = browser.get("/ui/login", params={"next": next_path})
    return browser.post("/ui/login", data={"token": token, "next": next_path, "form_token": form_token(page)})


def form_token(page: httpx.Response) -> str:
    found = _FORM_TOKEN.search(page.text)
    assert found is not None, page.text
    return found[1]


def form_of(page: httpx.Response, target: str, **fields: str) -> dict[str, str]:
    """The fields that a browser would send of a confirming page."""
    seen = _SEEN.search(page.text)
    assert seen is not None, page.text
    return {"form_token": form_token(page), "seen": seen[1], "target": target, **fields}


def confirm(browser: httpx.Client, action: str, target: str, **fields: str) -> httpx.Response:
    page = browser.get(f"/ui/do/{action}", params={"target": target})
    assert page.status_code == 200, page.text
    return browser.post(f"/ui/do/{action}", data=form_of(page, target, **fields))


@contextlib.contextmanager
def site(
    folder: Path,
    jobs: tuple[str, ...] = (),
    *,
    public: str | None = None,
    proxy: Proxy | None = None,
    local: bool = False,
) -> Iterator[Site]:
    """Serve until the block ends; jobs are queued and wait for a fleet. ``local``: as the socket's side is."""
    operators = folder / "operators"
    operators.write_text(f"# who may\nalice {ALICE}\n\nbob {BOB}\n")
    operators.chmod(0o600)
    stores, world, clock = open_stores(folder / "state"), VirtualWorld(), Clock()
    for name in jobs:
        config: dict[str, Any] = {"name": name, "eval_file": "/x", "rounds": 1, "min_devices": 3}
        stores.ledger.submit_job(name, "default", "a" * 64, "/nowhere", config)
        stores.ledger.job_is(name, "paused", None)
    transport = VirtualTransport(world, lambda _topic, _payload: None)
    evaluator = InlineEvaluator(lambda _theta: Evaluation(0.5, 0.5))
    services = Services(transport, stores.uploads, evaluator, world.clock, "http://nowhere")
    coordinator = compose_coordinator("default", stores.ledger, services, lambda _event: None)
    supervisor = Supervisor(coordinator, stores.ledger, _prepare, world.clock, lambda _j, _e: None, lambda: False)
    rollouts = Rollouts(
        "default",
        stores.ledger,
        stores.blobs,
        transport,
        "http://nowhere",
        coordinator.devices,
        time.time,
        lambda _kind, _name, _sha256: None,
    )
    operations = Operations(supervisor, stores.ledger, stores.blobs, folder / "state", rollouts)
    access = Access(None if local else OperatorFile(operators), clock, public, proxy)
    pages = make_dashboard(operations, PREFIX, dict)
    status: Any = SimpleNamespace(refused={})
    app = make_api(operations, lambda: status, lambda: b"metrics 1\n", access, pages)
    stop = threading.Event()

    def turns() -> None:
        while not stop.wait(0.005):
            supervisor.mailbox.serve()

    thread = threading.Thread(target=turns)
    thread.start()
    try:
        with serve_http(app, "127.0.0.1", 0) as port:
            yield Site(f"http://127.0.0.1:{port}", stores.ledger, clock, operators)
    finally:
        stop.set()
        thread.join()
        supervisor.close()
        stores.ledger.close()


def _prepare(record: JobRecord) -> Prepared:
    raise JobError(f"{record.name} is not to begin here", "")
