"""A real PostgreSQL server of its own, from Debian's package: started, killed, started again, thrown away."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from fleets import free_port

_USER = "postgres"
"""PostgreSQL does not run as root: the package's user runs it there."""


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs, the newest version's; None: it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    there = shutil.which("initdb")
    return None if there is None else Path(there).resolve().parent


class Postgres:
    """One server with one database, ``covey``; whoever connects from this machine may do everything."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs, self.port = folder, programs, free_port()
        self._as_user = [] if os.getuid() else ["runuser", "-u", _USER, "--"]
        if self._as_user:
            user = pwd.getpwnam(_USER)
            os.chown(folder, user.pw_uid, user.pw_gid)
        self._run("initdb", "--auth=trust", f"--username={_USER}", "--no-sync", "-D", str(folder / "data"))

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_user, str(self._programs / program), *arguments]
        made = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=300)
        assert made.returncode == 0, made.stdout + made.stderr

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "-w", "-t", "240", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; ``immediate`` is a crash: sessions are cut, and the next start recovers."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", mode, "-w", "-t", "240", "stop")

    def address(self, database: str = "covey") -> str:
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{database}"

    def new_database(self, name: str) -> str:
        """Make a database; return its address."""
        with psycopg.connect(self.address("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"'.encode())
        return self.address(name)

    def schema_for(self, path: Path) -> str:
        """Return the address of a schema of its own for what would be a file; it is made where it is not there."""
        name = "t" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:24]
        with psycopg.connect(self.address(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}".encode())
        return f"{self.address()}?options=-csearch_path%3D{name}"

    def sessions(self) -> int:
        """How many sessions Covey's ledgers have."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'covey'"
            ).fetchone()
        assert row is not None
        return int(row[0])

    def cut_sessions(self) -> None:
        """End every session of a ledger, as a restart of the database does."""
        with psycopg.connect(self.address(), autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'covey'"
            )


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Yield a running server with the database ``covey``; skip the test where PostgreSQL is not installed."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="covey-postgres-"))
    try:
        server = Postgres(folder, programs)
        server.start()
        try:
            server.new_database("covey")
            yield server
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                server.stop("immediate")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
