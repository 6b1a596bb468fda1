"""The checks of ``covey-edge doctor``: each yields what it found and what to do about it.

Unknown is None, never 0: a board without a sensor has no temperature.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import urllib.request
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge_runtime import __version__
from edge_runtime.device.board import Board
from edge_runtime.device.gate import Gate, board_conditions
from edge_runtime.engines import executorch_build
from edge_runtime.errors import ConfigError, CoveyError, DataError, NetworkError, StorageError
from edge_runtime.network.address import parse_broker
from edge_runtime.perturbation.kernel import kernel_name, kernel_reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_runtime.agent.config import EdgeConfig

_TIMEOUT_S = 5.0
_LITTLE_MEMORY_BYTES = 200_000_000
_LITTLE_DISK_BYTES = 500_000_000
_HOT_C = 75.0
_CLOCK_OFF_S = 60.0
DELEGATES = ("XnnpackBackend", "QnnBackend", "OpenvinoBackend", "CoreMLBackend")


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: its name.
        status: ``problem`` keeps the device from training, ``warning`` may do so, ``absent`` is missing but not needed.
        found: the result, for people.
        advice: what to do; empty: nothing.
        values: the result, for programs.
        exit_code: the command's exit code if this is the first problem.
    """

    check: str
    status: Literal["ok", "warning", "problem", "absent"]
    found: str
    advice: str
    values: dict[str, Any]
    exit_code: int = ConfigError.exit_code


def examine(
    config: EdgeConfig | None, now: Callable[[], float], root: Path = Path("/"), *, build: bool = False
) -> Iterator[Finding]:
    """Yield the findings, one check after the other.

    Args:
        config: the device's configuration; None: broker, server and data are not checked.
        now: returns seconds since 1970.
        root: the folder that holds proc, sys and run.
        build: whether to compile the library of the ExecuTorch engine if that has not been done.
    """
    runtime = "onnxruntime" if config is None else config.engine
    yield Finding(
        "covey",
        "ok",
        f"{__version__}, kernel {kernel_name()}: {kernel_reason()}",
        "",
        {
            "version": __version__,
            "kernel": kernel_name(),
        },
    )
    yield _onnxruntime()
    yield _executorch(needed=runtime == "executorch", build=build)
    yield _cores(0 if config is None else config.threads)
    board = Board(root)
    yield _memory(board)
    yield _disk(Path("." if config is None else config.state_dir))
    yield _temperature(board)
    server_time = None
    if config is not None:
        yield _eligibility(config, board)
        yield _data(Path(config.data.path))
        yield _broker(config)
        server, server_time = _server(config.server_url)
        yield server
    yield _clock(now(), server_time, root)


def _onnxruntime() -> Finding:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Finding("onnxruntime", "problem", f"does not load: {error}", "pip install onnxruntime", {})
    providers = ort.get_available_providers()
    return Finding(
        "onnxruntime",
        "ok",
        f"{ort.__version__}, {', '.join(providers)}",
        "",
        {
            "version": ort.__version__,
            "delegates": providers,
        },
    )


def _executorch(*, needed: bool, build: bool) -> Finding:
    from edge_runtime.engines import executorch_library

    missing: Literal["problem", "absent"] = "problem" if needed or build else "absent"
    try:
        if not (needed or build or executorch_build.PACKAGED.is_file() or executorch_build.cached().is_file()):
            return Finding(
                "executorch",
                "absent",
                "installed, its engine is not compiled yet",
                "covey-edge doctor --build",
                {"version": executorch_build.VERSION},
            )
        delegates = [name for name in DELEGATES if executorch_library.has_backend(name)]
        threads = int(executorch_library.load().covey_executorch_threads())
    except CoveyError as error:
        return Finding("executorch", missing, error.what, error.hint, {})
    values = {"version": executorch_build.VERSION, "delegates": delegates, "threads": threads}
    found = f"{executorch_build.VERSION}, {', '.join(delegates)}, {threads} threads"
    if "XnnpackBackend" not in delegates:
        return Finding("executorch", missing, f"{found}: no XNNPACK", "install the executorch wheel for Linux", values)
    return Finding("executorch", "ok", found, "", values)


def _cores(threads: int) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values = {"cores": cores, "threads": threads}
    if threads > cores:
        return Finding("threads", "warning", f"{threads} configured, {cores} cores", "set threads = 0", values)
    return Finding("threads", "ok", f"{threads or 'one a core'}, {cores} cores", "", values)


def _memory(board: Board) -> Finding:
    free = board.memory_free_bytes()
    if free is None:
        return Finding("memory", "warning", "free memory is unknown", "", {"free_bytes": None})
    low = free < _LITTLE_MEMORY_BYTES
    return Finding(
        "memory",
        "warning" if low else "ok",
        f"{free / 1e6:.0f} MB free",
        "end other programs, or train a smaller model" if low else "",
        {"free_bytes": free},
    )


def _disk(state_dir: Path) -> Finding:
    place = next((p for p in (state_dir, *state_dir.absolute().parents) if p.is_dir()), Path("/"))
    values = {"path": str(state_dir), "free_bytes": shutil.disk_usage(place).free}
    if not os.access(place, os.W_OK):
        return Finding(
            "disk",
            "problem",
            f"{place} cannot be written",
            "check its owner and permissions",
            values,
            StorageError.exit_code,
        )
    low = values["free_bytes"] < _LITTLE_DISK_BYTES  # type: ignore[operator]
    return Finding(
        "disk",
        "warning" if low else "ok",
        f"{values['free_bytes'] / 1e9:.1f} GB free for {state_dir}",  # type: ignore[operator]
        "free some space" if low else "",
        values,
    )


def _temperature(board: Board) -> Finding:
    degrees = board.temperature_c()
    if degrees is None:
        return Finding("temperature", "absent", "no sensor", "", {"celsius": None})
    hot = degrees > _HOT_C
    return Finding(
        "temperature",
        "warning" if hot else "ok",
        f"{degrees:.0f} °C",
        "a hot board throttles: cool it" if hot else "",
        {"celsius": degrees},
    )


def _eligibility(config: EdgeConfig, board: Board) -> Finding:
    """Check whether the device may train now; the load of other programs needs two readings and is left out."""
    try:
        closed = Gate(config.eligibility, board_conditions(Path(config.state_dir), board)).closed
    except ConfigError as error:
        return Finding("eligibility", "problem", error.what, error.hint, {"ineligible": error.what})
    if closed is None:
        return Finding("eligibility", "ok", "takes work now", "", {"ineligible": None})
    return Finding(
        "eligibility",
        "warning",
        f"takes no work now: {closed}",
        "see [eligibility] in edge.toml",
        {
            "ineligible": closed,
        },
    )


def _data(path: Path) -> Finding:
    if path.is_file():
        return Finding("data", "ok", f"{path}", "check its rows with: covey-edge data check", {"path": str(path)})
    return Finding(
        "data",
        "problem",
        f"no file at {path}",
        "set [data] path in the configuration",
        {"path": str(path)},
        DataError.exit_code,
    )


def _broker(config: EdgeConfig) -> Finding:
    address = parse_broker(config.broker)
    where = f"{address.host}:{address.port}"
    try:
        with socket.create_connection((address.host, address.port), _TIMEOUT_S) as plain:
            if address.tls:
                context = ssl.create_default_context(cafile=None if config.tls is None else config.tls.ca_file)
                if config.tls is not None and config.tls.cert_file is not None:
                    context.load_cert_chain(config.tls.cert_file, config.tls.key_file)
                context.wrap_socket(plain, server_hostname=address.host).close()
    except (OSError, ValueError) as error:
        return Finding(
            "broker",
            "problem",
            f"{where} cannot be reached: {error}",
            "check the address, the network, the firewall",
            {"address": where, "reachable": False},
            NetworkError.exit_code,
        )
    return Finding("broker", "ok", f"{where} answers", "", {"address": where, "reachable": True})


def _server(url: str | None) -> tuple[Finding, float | None]:
    """Ask the server for its health; return the finding, and the server's time in seconds since 1970."""
    if url is None:
        found = "not configured: the server tells its address with each plan"
        return Finding("server", "absent", found, "", {"url": None, "reachable": None}), None
    asked = f"{url.rstrip('/')}/healthz"
    try:
        if not asked.startswith(("http://", "https://")):
            raise ValueError("not an http address")  # noqa: TRY301 one way out for all that is wrong with it
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_S) as answer:  # noqa: S310 the scheme was checked
            date = answer.headers.get("Date")
        server_time = parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        finding = Finding(
            "server",
            "problem",
            f"{url} cannot be reached: {reason}",
            "check server_url, the network, the firewall",
            {"url": url, "reachable": False},
            NetworkError.exit_code,
        )
        return finding, None
    return Finding("server", "ok", f"{url} answers", "", {"url": url, "reachable": True}), server_time


def _clock(now: float, server_time: float | None, root: Path) -> Finding:
    if server_time is not None:
        off = now - server_time
        wrong = abs(off) > _CLOCK_OFF_S
        return Finding(
            "clock",
            "warning" if wrong else "ok",
            f"{off:+.0f} s against the server",
            "set it: sudo timedatectl set-ntp true (TLS refuses wrong times)" if wrong else "",
            {"offset_s": off},
        )
    synchronised = (root / "run/systemd/timesync/synchronized").exists() or None
    found = "synchronised" if synchronised else "not compared: no server asked, no word of systemd-timesyncd"
    return Finding("clock", "ok" if synchronised else "absent", found, "", {"offset_s": None})
