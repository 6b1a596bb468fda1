"""Certificates of a test's own authority, made with openssl: good ones, and each kind of bad one."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_LONG_AGO = ("20200101000000Z", "20200201000000Z")
_FAR_AHEAD = ("20900101000000Z", "20910101000000Z")
LOCALHOST = "subjectAltName=DNS:localhost,IP:127.0.0.1"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A private authority in a folder.

    Args:
        folder: a new folder for everything.
        extensions: the authority's own extensions; the default is what ``openssl req -x509`` writes.
        is_strict: whether its certificate satisfies RFC 5280 (Python 3.13's strict check).
    """

    def __init__(self, folder: Path, *, is_strict: bool = True) -> None:
        folder.mkdir(parents=True)
        folder.chmod(0o755)
        self.folder, self.ca, self._count = folder, folder / "ca.pem", 0
        (folder / "db").write_text("")
        (folder / "ca.conf").write_text(
            f"[ca]\ndefault_ca=it\n[it]\ndatabase={folder}/db\nnew_certs_dir={folder}\nrand_serial=yes\n"
            "default_md=sha256\npolicy=any\nunique_subject=no\n[any]\ncommonName=supplied\n"
            "[req]\ndistinguished_name=dn\n[dn]\n"
        )
        usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign", "-addext", "subjectKeyIdentifier=hash")
        basic = ("-addext", "basicConstraints=critical,CA:TRUE")
        self._openssl(
            *("req", "-x509", "-config", "ca.conf", *_KEY, "-keyout", "ca.key", "-out", "ca.pem", "-days", "3650"),
            *("-subj", "/CN=test authority", *basic, *(usage if is_strict else ())),
        )

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def make(
        self, name: str, extensions: str = LOCALHOST, dates: tuple[str, str] | None = None, *, is_strict: bool = True
    ) -> Pair:
        """Make a certificate for a name, with these lines of extensions, valid from now on or between ``dates``."""
        self._count += 1
        stem = f"{name}-{self._count}"
        more = "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n" if is_strict else ""
        (self.folder / "extensions").write_text(f"basicConstraints=CA:FALSE\n{more}{extensions}\n")
        self._openssl(
            *(
                "req",
                "-config",
                "ca.conf",
                *_KEY,
                "-keyout",
                f"{stem}.key",
                "-out",
                f"{stem}.csr",
                "-subj",
                f"/CN={name}",
            )
        )
        between = ("-days", "365") if dates is None else ("-startdate", dates[0], "-enddate", dates[1])
        self._openssl(
            *("ca", "-batch", "-config", "ca.conf", "-cert", "ca.pem", "-keyfile", "ca.key", "-in", f"{stem}.csr"),
            *("-out", f"{stem}.pem", "-notext", "-extfile", "extensions", *between),
        )
        for path in self.folder.glob(f"{stem}.*"):
            path.chmod(0o644)  # mosquitto gives up root before it reads its key
        return Pair(self.folder / f"{stem}.pem", self.folder / f"{stem}.key")

    def expired(self, name: str) -> Pair:
        """Make a certificate whose time is over."""
        return self.make(name, dates=_LONG_AGO)

    def not_yet_valid(self, name: str) -> Pair:
        """Make a certificate whose time has not begun."""
        return self.make(name, dates=_FAR_AHEAD)
