"""The checks of ``covey-edge doctor``: each yields what it found and what to do about it.

Unknown is None, never 0: a board without a sensor has no temperature.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.commands.doctor_held_out import held_out_finding
from edge_runtime.commands.doctor_natives import native_findings
from edge_runtime.commands.doctor_network import broker_findings, server_finding
from edge_runtime.commands.doctor_providers import providers_finding
from edge_runtime.commands.doctor_trial import trial_finding
from edge_runtime.commands.doctor_versions import versions_finding
from edge_runtime.commands.finding import Finding, problem
from edge_runtime.device.board import Board
from edge_runtime.device.gate import Gate, board_conditions
from edge_runtime.engines.providers import CPU_ONLY
from edge_runtime.errors import BundleError, ConfigError, CoveyError, DataError, StorageError
from edge_runtime.host.sysfs import Sysfs
from edge_runtime.host.threads import usable_threads
from edge_runtime.signing.keys import key_id, read_private_key, read_public_keys
from edge_runtime.store.journal import JOURNAL_FILE, JournalDamagedError
from edge_runtime.store.state_check import check_state_dir
from edge_runtime.store.store import Store, current_adapter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from edge_runtime.agent.config import EdgeConfig
    from edge_runtime.bundle.folder import Bundle
    from edge_runtime.signing.key_files import DeviceKeys

_OF_ROWS = ("covey", "tokenizers")  # the compiled libraries that reading rows needs
_LITTLE_MEMORY_BYTES = 200_000_000
_LITTLE_DISK_BYTES = 500_000_000
_HOT_C = 75.0
_CLOCK_OFF_S = 60.0


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
    broken = []
    for finding in native_findings("onnxruntime" if config is None else config.engine, build=build):
        if finding.status == "problem" and finding.check in _OF_ROWS:
            broken.append(finding.check)
        yield finding
    if config is not None and config.execution_providers != CPU_ONLY:
        yield providers_finding(config)
    board = Board(Sysfs(root))
    yield _board(board)
    yield _threads(0 if config is None else config.threads, Sysfs(root))
    yield _memory(board)
    yield _disk(Path("." if config is None else config.state_dir))
    yield _temperature(board)
    server_time = None
    if config is not None:
        yield _eligibility(config, board)
        if config.signing is not None:
            yield _signing(config.signing)
        yield _state(Path(config.state_dir))
        if config.engine not in broken and "tokenizers" not in broken:
            yield versions_finding(config, _current_bundle(Path(config.state_dir)))
        yield trial_finding(config)
        yield held_out_finding(config)
        yield _data(config, broken)
        yield from broker_findings(config)
        server, server_time = server_finding(config.server_url, config.tls)
        yield server
    yield _clock(now(), server_time, root)


def _board(board: Board) -> Finding:
    facts = board.facts()
    parts = [facts.board if facts.model is None else f"{facts.model} ({facts.board})"]
    if facts.cores is not None:
        parts.append(f"{facts.cores} cores online")
    if facts.memory_bytes is not None:
        parts.append(f"{facts.memory_bytes / 1e6:.0f} MB of memory")
    values = {"board": facts.board, "model": facts.model, "cores": facts.cores, "memory_bytes": facts.memory_bytes}
    return Finding("board", "ok", ", ".join(parts), "", values)


def _threads(threads: int, files: Sysfs) -> Finding:
    """Say how many threads an operator gets, and what decides: the owner, the affinity mask, or a quota."""
    usable = usable_threads(files)
    values = {"cores": usable.cores, "quota": usable.quota, "usable": usable.count, "threads": threads}
    if threads > usable.count:
        found = f"{threads} configured, {usable.count} can run at once: {usable.why}"
        return Finding("threads", "warning", found, "set threads = 0", values)
    count = threads or usable.count
    why = f"threads = {threads} in edge.toml" if threads else usable.why
    return Finding("threads", "ok", f"{count} {'thread' if count == 1 else 'threads'}: {why}", "", values)


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
        closed = Gate(config.eligibility, board_conditions(config.eligibility, Path(config.state_dir), board)).closed
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


def _signing(keys: DeviceKeys) -> Finding:
    """Read the keys of signed messages, as ``covey-edge run`` does."""
    try:
        own = key_id(read_private_key(Path(keys.key_file)).public_key()).hex()
        servers = [key_id(key).hex() for key in read_public_keys(Path(keys.server_key_file))]
    except ConfigError as error:
        return problem("signing", error)
    found = f"messages are signed with key {own}, and believed from the server's {', '.join(servers)}"
    return Finding("signing", "ok", found, "", {"key": own, "server_keys": servers})


def _state(state_dir: Path) -> Finding:
    """Check the state directory and its journal, as ``run`` does."""
    values = {"path": str(state_dir)}
    try:
        check_state_dir(state_dir)
    except JournalDamagedError as error:
        advice = "nothing: covey-edge run sets it aside, and fetches bundle and adapter again"
        return Finding("state", "warning", error.what, advice, values)
    except StorageError as error:
        return problem("state", error, values)
    return Finding("state", "ok", f"{state_dir} can be written, and its journal is whole", "", values)


def _data(config: EdgeConfig, broken: Sequence[str]) -> Finding:
    """Check the rows: with the current bundle as ``run`` does, before the first round that there are any."""
    path, values = Path(config.data.path), {"path": config.data.path}
    if not path.exists():
        error = ConfigError(f"no data file at {path}", "set [data] path in the configuration")
        return problem("data", error, values)
    if broken:
        return Finding("data", "warning", f"not checked: {', '.join(broken)} does not load", "see above", values)
    try:
        bundle = _current_bundle(Path(config.state_dir))
        if bundle is None:
            return _unchecked(path, values)
        from edge_runtime.data.rows import load_rows  # not earlier: it loads compiled libraries

        rows = len(load_rows(bundle, config.data))
    except CoveyError as error:
        return problem("data", error, values)
    return Finding("data", "ok", f"{path}: {rows} rows fit the current bundle", "", values | {"rows": rows})


def _unchecked(path: Path, values: dict[str, Any]) -> Finding:
    try:
        if path.is_dir():
            is_empty = not any(path.iterdir())
        else:
            with path.open("rb") as file:
                is_empty = not any(line.strip() for line in file)
    except OSError as error:
        return problem("data", DataError(f"cannot read {path}: {error.strerror}", "check its permissions"), values)
    if is_empty:
        return problem("data", DataError(f"{path} has no rows", "write one row per line"), values)
    advice = "no bundle is here yet that tells the labels; check the rows with: covey-edge data check --labels A,B"
    return Finding("data", "ok", f"{path}", advice, values)


def _current_bundle(state_dir: Path) -> Bundle | None:
    """Return the bundle of the last round; None: there is none, or it is not whole (``run`` fetches it again)."""
    from edge_runtime.bundle.folder import open_bundle

    try:
        current = current_adapter(Store(state_dir)) if (state_dir / JOURNAL_FILE).exists() else None
        return None if current is None else open_bundle(current[0])
    except (StorageError, BundleError):
        return None


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
