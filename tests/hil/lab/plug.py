"""A switched socket for tests: what a Shelly plug of the second generation says over HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextlib.contextmanager
def switched_socket(switch: Callable[[bool], None] = lambda _on: None) -> Iterator[tuple[str, list[Any]]]:
    """Run the socket; yield its address, and what it was asked.

    Args:
        switch: is called with True where the power is to come, and False where it is to go.
    """
    asked: list[Any] = []

    class Plug(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            wanted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = self.path == "/rpc" and wanted["method"] == "Switch.Set"
            if known:
                asked.append(wanted)
                switch(wanted["params"]["on"])
            body = json.dumps({"id": wanted["id"], "result": {"was_on": True}}).encode()
            self.send_response(200 if known else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    server = HTTPServer(("127.0.0.1", 0), Plug)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
