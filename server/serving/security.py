"""What protects a fleet after ``covey fleet init``: its keys, who its members are, and TLS for its listeners."""

from __future__ import annotations

import datetime as dt
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_runtime.errors import ConfigError
from edge_runtime.network.address import TlsFiles
from edge_runtime.signing.members import member_with, server_member
from server.trust.folder import (
    AUTHORITY_CERT,
    FOLDER,
    SERVER_CERT,
    SERVER_KEY,
    has_trust,
    open_trust,
    with_server_certificate,
)
from server.trust.members import Members
from server.trust.release_keys import open_release_keys
from server.trust.releases import ReleaseBook
from server.trust.tls import server_context

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from edge_runtime.signing.members import Member
    from server.serving.options import ServeOptions
    from server.storage.ledger import Ledger
    from server.trust.folder import Trust


_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Security:
    """A fleet that has an authority.

    Attributes:
        trust: its keys and certificates.
        members: its devices, by the ledger.
        context: of the listeners for MQTT and blobs: they take members only.
        releases: signs what the server has taken, for devices that ask.
    """

    trust: Trust
    members: Members
    context: ssl.SSLContext
    releases: ReleaseBook


def open_security(options: ServeOptions, ledger: Ledger) -> Security | None:
    """Open what protects a fleet; None: ``covey fleet init`` was not run for its state directory.

    The server's certificate is renewed where it is due, and a release key is made where there is none.

    Raises:
        ConfigError: --approve-joins or --announce without an authority; --sign-key with one; or the authority is
            another fleet's.
        StorageError: a key or a certificate is missing or damaged.
    """
    if not has_trust(options.state_dir):
        if options.approve_joins:
            raise ConfigError("--approve-joins is for a fleet with an authority", "make it: covey fleet init")
        if options.announce:
            raise ConfigError("--announce is for a fleet with an authority", "make it: covey fleet init")
        _LOG.info(
            "no TLS and no passwords on %s: covey fleet init makes the keys for a fleet of several machines",
            options.listen,
        )
        return None
    now_s = ledger.now_s()
    trust = with_server_certificate(open_trust(options.state_dir), dt.datetime.fromtimestamp(now_s, dt.timezone.utc))
    if trust.fleet != options.fleet:
        raise ConfigError(
            f"{trust.folder} is the authority of fleet {trust.fleet}, and the server is started for {options.fleet}",
            f"covey serve --fleet {trust.fleet}; or another --state-dir",
        )
    if options.signing is not None:
        raise ConfigError(
            f"the keys of fleet {trust.fleet} are in {trust.folder}, and --sign-key names others",
            "leave out --sign-key and --device-keys: the fleet's own are used",
        )
    open_release_keys(trust.folder, trust.fleet, now_s)  # a fleet that is older than its release key gets one
    return Security(
        trust,
        Members(ledger, trust.fleet),
        server_context(trust, needs_certificate=True),
        ReleaseBook(trust, ledger.now_s, is_shared=ledger.shared_clock_s is not None),
    )


def signing_member(
    options: ServeOptions, security: Security | None, shared_clock_s: Callable[[], float] | None
) -> Member | None:
    """Return what signs and checks the server's messages; None: they are not signed.

    Args:
        options: names the keys of a fleet without an authority.
        security: has those of one that has it.
        shared_clock_s: see members.member_with.

    Raises:
        ConfigError: a key cannot be used.
    """
    if security is not None:
        key, members = security.trust.signing_key, security.members
        return member_with(key, members, options.fleet, options.state_dir, shared_clock_s)
    if options.signing is None:
        return None
    return server_member(options.signing, options.fleet, options.state_dir, shared_clock_s)


def broker_files(options: ServeOptions) -> TlsFiles | None:
    """Return the files with which the server logs in at a broker: those of its options, else the fleet's own."""
    if not has_trust(options.state_dir) or (options.tls is not None and options.tls != TlsFiles()):
        return options.tls
    folder = options.state_dir / FOLDER
    return TlsFiles(*(str(folder / name) for name in (AUTHORITY_CERT, SERVER_CERT, SERVER_KEY)))
