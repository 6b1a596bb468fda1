"""Joins a fleet with a token. A power cut between any two steps loses nothing: the same command goes on from there."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import NetworkError, ProtocolError, StorageError, storage_error
from edge_runtime.network.http_address import bracketed
from edge_runtime.trust.edge_file import check_may_write, write_fields
from edge_runtime.trust.exchange import AnotherAuthorityError, JoinServer, NotNowError, trusting
from edge_runtime.trust.folder import KEY, IdentityFolder
from edge_runtime.trust.identity import (
    About,
    about_of,
    checked_certificate,
    write_certificates,
)
from edge_runtime.trust.keys import certificate_pem, key_sha256, make_request, own_key
from edge_runtime.trust.messages import JoinRequest
from edge_runtime.trust.validity import ClockError, check_valid_now

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.trust.discovery import Found
    from edge_runtime.trust.messages import DeviceFacts, EdgeFields, JoinAnswer
    from edge_runtime.trust.token import JoinToken

    Discover = Callable[[bytes], Found]

_LOG = logging.getLogger(__name__)
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 30.0


@dataclass(frozen=True)
class JoinOptions:
    """How a device joins.

    Attributes:
        token: the token.
        config: the configuration file that is written.
        server_url: the server's address, where the token's does not lead to it from here; None: the token's.
        data_path: ``[data] path`` of a new configuration.
        may_change: whether fields of a configuration that is there may change.
        facts: what the device says of itself.
        discover: returns what to try where the token's address does not lead to the server, and no other is given.
    """

    token: JoinToken
    config: Path
    server_url: str | None
    data_path: str
    may_change: bool
    facts: DeviceFacts
    discover: Discover | None = None

    @property
    def url(self) -> str:
        """Where the device joins."""
        return (self.server_url or self.token.server_url).rstrip("/")


class _PendingError(NotNowError):
    """The operator has not approved the device yet."""


def join(options: JoinOptions, clock_s: Callable[[], float], wait: Callable[[float], bool]) -> EdgeFields:
    """Join the fleet of a token, and write the configuration; try again until network and clock are there.

    Args:
        options: see JoinOptions.
        clock_s: this machine's time, in seconds since 1970.
        wait: waits for some seconds; returns False where there is to be no further attempt.

    Raises:
        ConfigError: the configuration that is there is another one's.
        EnrolmentError: the server refuses the device, or does not approve it in time.
        ClockError: a certificate is not valid by this machine's clock.
        NetworkError: the server cannot be reached, or is not the fleet's.
        StorageError: a file cannot be written.
    """
    pause_s, said = _FIRST_RETRY_S, ""
    while True:
        try:
            return _join_anywhere(options, clock_s)
        except (NotNowError, ClockError) as error:
            if error.what != said:
                _LOG.warning("%s; trying again", error.what)
            said = error.what
            asked_s = error.retry_s if isinstance(error, NotNowError) else None
            if not wait(pause_s if asked_s is None else asked_s):
                raise
            pause_s = min(2 * pause_s, _LONGEST_RETRY_S)


def _join_anywhere(options: JoinOptions, clock_s: Callable[[], float]) -> EdgeFields:
    """Join at the token's address, or else at a server that announces itself with the token's authority.

    What is announced is only a place to try: a server that cannot show a certificate of that authority gets nothing.
    """
    try:
        return join_once(options, clock_s)
    except (ClockError, _PendingError):
        raise
    except (AnotherAuthorityError, NetworkError) as error:
        if options.server_url is not None or options.discover is None:
            raise
        away = error
    found = options.discover(options.token.authority_sha256)
    refused = []
    for url in found.urls:
        try:
            return join_once(replace(options, server_url=url), clock_s)
        except (ClockError, _PendingError):
            raise
        except (AnotherAuthorityError, NetworkError, ProtocolError) as error:
            refused.append(error.what)
            _LOG.warning("a server announces itself at %s, and cannot be joined there: %s", url, error.what)
    said = f"in the local network: {'; '.join(refused)}" if refused else found.said
    if not isinstance(away, NotNowError):  # another machine has the token's address; nothing will change there
        _LOG.warning("%s", said)
        raise away
    hint = f"{away.hint}; or give the server's address: covey-edge join https://server:8443 TOKEN"
    raise NotNowError(f"{away.what}; {said}", hint)


def join_once(options: JoinOptions, clock_s: Callable[[], float]) -> EdgeFields:
    """Do what is left of a join; see join."""
    folder, token_id = IdentityFolder(options.config), options.token.id.hex()
    check_may_write(options.config, options.token.device, folder.tls, may_change=options.may_change)
    about = _joined_with(folder.path, token_id)
    if about is None:
        staging = folder.staging(token_id)
        about = _joined_with(staging, token_id) or _fetch(options, staging, clock_s())
        folder.put_in_place(token_id)
    fields = {"name": about.edge.name, "fleet": about.edge.fleet, "broker": about.edge.broker}
    if about.edge.server_url is not None:
        fields["server_url"] = about.edge.server_url
    tables = {"tls": folder.tls, "signing": folder.signing}
    write_fields(options.config, {**fields, **tables}, options.data_path, may_change=options.may_change)
    folder.remove_leftovers()
    return about.edge


def _joined_with(path: Path, token_id: str) -> About | None:
    """Return what a token has brought already; None: nothing, or what is there is of another token or damaged."""
    try:
        about = about_of(path)
    except StorageError as error:
        _LOG.warning("%s", error.what)
        return None
    return about if about is not None and about.token_id == token_id else None


def _fetch(options: JoinOptions, staging: Path, now_s: float) -> About:
    """Make a key, have the server sign its certificate, and write both into a folder; return what belongs to them."""
    token = options.token
    try:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, staging) from error
    key = own_key(staging / KEY)
    server = JoinServer(options.url)
    authority = server.authority(token.authority_sha256, now_s)
    authority_pem = certificate_pem(authority)
    request = JoinRequest(token.id.hex(), token.secret.hex(), make_request(key, token.device), options.facts)
    answer = server.ask("/join", request, trusting(authority_pem))
    if answer.state == "pending":
        raise _PendingError(
            f"{token.device} waits for the operator's approval; its key is {key_sha256(key.public_key())}",
            f"approve it on the server: covey device approve {token.device}",
            answer.retry_s,
        )
    certificate = checked_certificate(answer, authority, key.public_key())
    check_valid_now(certificate, "the device's new certificate", now_s, "join with a new token")
    about = About(token.id.hex(), options.url, _with_host(answer, server.place.host))
    write_certificates(staging, answer, authority_pem, about)
    return about


def _with_host(answer: JoinAnswer, host: str) -> EdgeFields:
    """Return the fields for edge.toml; an address without a host gets the host that the device joined at."""
    edge = answer.edge
    assert edge is not None  # noqa: S101 checked_certificate has seen it
    changes = {
        field: url.replace("://:", f"://{bracketed(host)}:", 1)
        for field, url in (("broker", edge.broker), ("server_url", edge.server_url))
        if url is not None
    }
    return msgspec.structs.replace(edge, **changes)
