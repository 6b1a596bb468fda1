"""Where a device's identity is: a folder beside its edge.toml, put in its place whole, by one rename."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import storage_error
from edge_runtime.files.atomic import sync_directory, write_atomically
from edge_runtime.releases.accepted import ACCEPTED_FILES

if TYPE_CHECKING:
    from pathlib import Path

KEY, CERT, AUTHORITY, SIGNING = "key.pem", "cert.pem", "ca.pem", "signing.pem"


@dataclass(frozen=True)
class IdentityFolder:
    """Where the identity of the device with a configuration file is.

    Attributes:
        config: the configuration file, ``edge.toml``; the identity is beside it, in ``edge-trust/``.
    """

    config: Path

    @property
    def path(self) -> Path:
        """The folder."""
        return self.config.parent / self.name

    @property
    def name(self) -> str:
        """The folder's name."""
        return f"{self.config.stem}-trust"

    def staging(self, token_id: str) -> Path:
        """Return the folder in which the identity of a token is made."""
        return self.config.parent / f"{self.name}.joining-{token_id}"

    @property
    def tls(self) -> dict[str, str]:
        """``[tls]`` of edge.toml, relative to it."""
        files = {"ca_file": AUTHORITY, "cert_file": CERT, "key_file": KEY}
        return {field: f"{self.name}/{name}" for field, name in files.items()}

    @property
    def signing(self) -> dict[str, str]:
        """``[signing]`` of edge.toml, relative to it."""
        return {"key_file": f"{self.name}/{KEY}", "server_key_file": f"{self.name}/{SIGNING}"}

    def put_in_place(self, token_id: str) -> None:
        """Put a finished staging folder in place; the identity that was there is kept as ``edge-trust.before``.

        Which releases the device has taken goes over to the new identity: joining again is no way to an old version.

        Raises:
            StorageError: it cannot be renamed.
        """
        before = self.config.parent / f"{self.name}.before"
        try:
            for name in ACCEPTED_FILES:
                if (self.path / name).is_file():
                    write_atomically(self.staging(token_id) / name, (self.path / name).read_bytes())
            if self.path.exists():
                shutil.rmtree(before, ignore_errors=True)
                self.path.rename(before)
            self.staging(token_id).rename(self.path)
            sync_directory(self.config.parent)
        except OSError as error:
            raise storage_error(error, self.path) from error

    def remove_leftovers(self) -> None:
        """Remove staging folders of tokens that never came to an end."""
        for left in self.config.parent.glob(f"{self.name}.joining-*"):
            shutil.rmtree(left, ignore_errors=True)
