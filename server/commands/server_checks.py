"""The checks of ``covey doctor``; reach_checks.py has those on broker, bundles and joining side."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.bundle.folder import open_bundle, verify_files
from edge_runtime.commands.finding import Finding, problem
from edge_runtime.errors import ConfigError, CoveyError
from edge_runtime.files.writable import check_writable
from edge_runtime.signing.keys import KeyFolder, key_id, read_private_key, read_public_keys
from edge_runtime.trust.validity import check_valid_now, date_words
from server.client.address import socket_path
from server.client.client import Client, NoServerError
from server.commands.reach_checks import broker_findings, fetch_findings
from server.storage import queries
from server.storage.ledger import Ledger
from server.storage.ledger_address import LEDGER_FILE, address_beside, has_ledger, shown
from server.trust.folder import has_trust, open_trust
from server.web.broker import EMBEDDED
from server.web.http_app import bind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.signing.key_files import ServerKeys
    from server.serving.options import ServeOptions

_LEAST_FREE_BYTES = 500_000_000
_FEWEST_FILES = 4096


def examine(options: ServeOptions) -> list[Finding]:
    """Return the findings about a server with these options, whether it runs or not."""
    running = _running(options)
    findings = [running, _disk(options), _descriptors()]
    if running.status == "absent":
        findings += _ports(options)
    findings += _trust(options)
    findings += broker_findings(options, running.values)
    findings += fetch_findings(options, running.values)
    if options.signing is not None:
        findings.append(_signing(options.signing))
    findings += _ledger(options)
    return findings


def _running(options: ServeOptions) -> Finding:
    try:
        with Client(socket_path=socket_path(options.state_dir)) as client:
            status = client.get("/server")
    except NoServerError:
        return Finding("server", "absent", f"no server runs on {options.state_dir}", "", {"running": False})
    except CoveyError as error:
        return problem("server", error, {"running": None})
    jobs = ", ".join(status["jobs_at_work"]) or "no job"
    found = f"runs for {status['uptime_s']:.0f} s; {status['devices_here']} devices are here; at work: {jobs}"
    if status["epoch"] is None:
        return Finding("server", "problem", f"{found}; it has no connection to its broker", "see its log", status)
    return Finding("server", "ok", found, "", {"running": True, **status})


def _disk(options: ServeOptions) -> Finding:
    try:
        check_writable(options.state_dir, "--state-dir")
    except CoveyError as error:
        return problem("disk", error)
    place = next(path for path in (options.state_dir, *options.state_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    values = {"bytes_free": free}
    found = f"{options.state_dir} can be written, {free / 1e9:.1f} GB free"
    if free < _LEAST_FREE_BYTES:
        return Finding(
            "disk", "warning", found, "free some space: the ledger and three adapters per job are there", values
        )
    return Finding("disk", "ok", found, "", values)


def _descriptors() -> Finding:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = f"a process may open {soft} files and connections"
    if 0 <= soft < _FEWEST_FILES:
        return Finding(
            "descriptors", "warning", found, "for large fleets: ulimit -n 65536, or the unit's LimitNOFILE", {}
        )
    return Finding("descriptors", "ok", found)


def _ports(options: ServeOptions) -> Iterator[Finding]:
    wanted = [("http port", options.listen, options.http_port)]
    if options.broker == EMBEDDED:
        wanted.append(("mqtt port", options.listen, options.mqtt_port))
    if options.api_port is not None:
        wanted.append(("api port", options.api_listen, options.api_port))
    if has_trust(options.state_dir):
        wanted.append(("join port", options.listen, options.join_port))
    for check, host, port in wanted:
        try:
            bind(host, port).close()
        except CoveyError as error:
            yield problem(check, error, {"port": port})
        else:
            yield Finding(check, "ok", f"{host}:{port} is free", "", {"port": port})


def _trust(options: ServeOptions) -> Iterator[Finding]:
    """Yield what is found about the fleet's authority, if there is one."""
    if not has_trust(options.state_dir):
        return
    try:
        trust = open_trust(options.state_dir)
        anew = "start covey serve, which renews it"
        check_valid_now(trust.authority.certificate, "the fleet's authority", time.time(), "make the fleet anew")
        check_valid_now(trust.server, "the server's certificate", time.time(), anew)
    except CoveyError as error:
        yield problem("authority", error)
        return
    until = date_words(trust.server.not_valid_after_utc.timestamp())
    found = f"fleet {trust.fleet}; the server's certificate is for {', '.join(trust.hosts)}, until {until}"
    yield Finding("authority", "ok", found, "", {"authority_sha256": trust.authority.sha256.hex()})


def _signing(keys: ServerKeys) -> Finding:
    """Read the server's key, and the keys of all devices."""
    try:
        own = key_id(read_private_key(keys.key_file).public_key()).hex()
        KeyFolder(keys.device_keys)
    except ConfigError as error:
        return problem("signing", error)
    files = sorted(keys.device_keys.glob("*.pem"))
    for path in files:
        try:
            read_public_keys(path)
        except ConfigError as error:
            return problem("signing", error, {"key": own})
    found = f"messages are signed with key {own}, and believed from {len(files)} devices"
    values = {"key": own, "devices": [path.stem for path in files]}
    if not files:
        return Finding(
            "signing", "warning", found, f"put the public key of each device into {keys.device_keys}", values
        )
    return Finding("signing", "ok", found, "", values)


def _ledger(options: ServeOptions) -> Iterator[Finding]:
    """Look at the ledger, the clock, and the files of each job that is to run."""
    path = options.state_dir / LEDGER_FILE
    if not has_ledger(path):
        yield Finding("ledger", "absent", f"there is no ledger at {path} yet")
        return
    try:
        ledger = Ledger(path, read_only=True)
        jobs = queries.jobs_of(ledger, options.fleet)
        ledger.close()
    except CoveyError as error:
        yield problem("ledger", error)
        return
    address = address_beside(path)
    place = path if address is None else shown(address)
    yield Finding("ledger", "ok", f"{place} has {len(jobs)} job(s) of fleet {options.fleet}", "", {"jobs": len(jobs)})
    ahead_s = path.stat().st_mtime - time.time() if path.exists() else 0.0
    if ahead_s > 60:
        advice = "set the clock (timedatectl): certificates and times of jobs depend on it"
        yield Finding("clock", "problem", f"the ledger was written {ahead_s:.0f} s after now, by this clock", advice)
    for job in jobs:
        if job.state in ("queued", "running", "paused"):
            yield _job(job.name, job.bundle_path, str(job.config["eval_file"]), job.bundle_sha256)


def _job(name: str, bundle_path: str | None, eval_file: str, bundle_sha256: str) -> Finding:
    check, values = f"job {name}", {"job": name}
    try:
        if bundle_path is not None:
            bundle = open_bundle(Path(bundle_path))
            verify_files(bundle)
            if bundle.sha256 != bundle_sha256:
                raise ConfigError(f"{bundle_path} is another bundle than the job's", "put the job's own bundle back")
        if not Path(eval_file).exists():
            raise ConfigError(f"its eval_file {eval_file} is gone", "put it back")
    except CoveyError as error:
        return problem(check, error, values)
    return Finding(check, "ok", "its bundle and its held-out rows are there", "", values)
