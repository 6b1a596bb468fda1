"""An identity provider (npm package oidc-provider), and Debian's Apache with mod_auth_openidc, on ports of a test."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from fleets import wait_for
from repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PATH = f"{os.environ['PATH']}:/usr/sbin"
_MODULES = Path("/usr/lib/apache2/modules")
_PROVIDER = Path(__file__).parent / "oidc" / "provider.mjs"
PACKAGES = ROOT / "build" / "oidc"
"""Where npm has put oidc-provider."""
DOCUMENTED = ROOT / "docs" / "ops" / "oidc"
SECRET = "secret-of-the-client"  # noqa: S105 of a test's provider


def lacking() -> str:
    """Return what is missing, with the commands that install it; empty: nothing."""
    found = []
    if shutil.which("apache2", path=_PATH) is None or not (_MODULES / "mod_auth_openidc.so").is_file():
        found.append("apt-get install apache2-bin libapache2-mod-auth-openidc")
    if shutil.which("node") is None:
        found.append("apt-get install nodejs")
    if not (PACKAGES / "node_modules" / "oidc-provider").is_dir():
        found.append(f"npm install --prefix {PACKAGES.relative_to(ROOT)} oidc-provider@9")
    return "; ".join(found)


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)

    def listening() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        return False

    try:
        wait_for(listening, command[0], 120.0)
        yield
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def identity_provider(folder: Path, port: int, redirect: str) -> Iterator[str]:
    """Run the provider until the block ends; yields its issuer."""
    command = ["node", str(_PROVIDER), str(PACKAGES), str(port), redirect]
    with _running(command, port, folder / "provider.log"):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def apache(folder: Path, port: int, settings: Mapping[str, str], source: str) -> Iterator[None]:
    """Run Apache with the documented configuration until the block ends.

    Args:
        folder: for its files.
        port: of its listener, without TLS.
        settings: for the names of the documented settings.conf.
        source: address from which it asks the server.
    """
    named = [line.split()[1] for line in (DOCUMENTED / "settings.conf").read_text().splitlines() if "Define" in line]
    assert set(settings) == set(named)
    names = ("mpm_event", "unixd", "authn_core", "authz_core", "authz_user", "headers", "proxy", "proxy_http",
             "auth_openidc", "socache_shmcb")  # fmt: skip
    modules = [
        f"LoadModule {name}_module {_MODULES}/mod_{name}.so"
        for name in names
        if (_MODULES / f"mod_{name}.so").is_file()
    ]
    config = folder / "apache.conf"
    config.write_text(
        "\n".join(
            [
                *modules,
                f"ServerRoot {folder}",
                f"PidFile {folder}/apache.pid",
                f"ErrorLog {folder}/error.log",
                "ServerName covey.example",
                f"Listen 127.0.0.1:{port}",
                "LogLevel warn auth_openidc:debug",
                *(f'Define {name} "{value}"' for name, value in settings.items()),
                f"ProxySourceAddress {source}",
                f"Include {DOCUMENTED}/apache.conf",
                "",
            ]
        )
    )
    binary = shutil.which("apache2", path=_PATH)
    assert binary is not None
    with _running([binary, "-X", "-f", str(config)], port, folder / "apache.log"):
        yield
