"""Renews a device's certificate before it expires, over a connection that shows the old one; also takes a new name."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import CoveyError, EnrolmentError
from edge_runtime.trust.edge_file import write_fields
from edge_runtime.trust.exchange import JoinServer, trusting
from edge_runtime.trust.folder import CERT, KEY, IdentityFolder
from edge_runtime.trust.identity import (
    Identity,
    checked_certificate,
    read_identity,
    take_release_keys,
    write_certificates,
)
from edge_runtime.trust.keys import certificate_pem, make_request, name_of
from edge_runtime.trust.membership import no_member
from edge_runtime.trust.messages import RenewRequest
from edge_runtime.trust.validity import check_valid_now, is_renewal_due

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_LOG = logging.getLogger(__name__)
CHECK_EVERY_S = 6 * 3600.0
_LAST_REQUEST_S = 2.0


def renew_if_due(config: Path, now_s: float, *, is_due: bool = False, asks_name: bool = False) -> Identity | None:
    """Renew the certificate of the device with a configuration file, where less than a third of its time is left.

    A certificate with a new name is taken at once where the operator has given the device one. The fleet's release keys
    are taken from each answer.

    Args:
        config: the configuration file; its identity is beside it.
        now_s: this machine's time, in seconds since 1970.
        is_due: whether it is to be renewed in any case.
        asks_name: whether the server is asked for the device's name where it is not due.

    Returns:
        The renewed identity; None: it was not due.

    Raises:
        ConfigError: the device has not joined.
        ClockError: a certificate is not valid by this machine's clock.
        EnrolmentError: the server refuses it: it was revoked.
        NetworkError: the server cannot be reached.
        StorageError: a file is damaged, or cannot be written.
    """
    folder = IdentityFolder(config)
    own = read_identity(folder.path)
    _take_name(folder, name_of(own.certificate))  # where a power cut came between certificate and configuration
    due = is_due or is_renewal_due(own.certificate, now_s)
    if not due and not asks_name:
        return None
    check_valid_now(own.certificate, "this device's certificate", now_s, "join again: covey fleet token NAME")
    files = (own.folder / CERT, own.folder / KEY)
    server = JoinServer(own.about.join_url, own_certificate=str(files[0]))
    authority_pem = certificate_pem(own.authority)
    context = trusting(authority_pem, files)
    if not due:
        told = server.ask("/me", None, context)
        take_release_keys(own.folder, told, own.about.edge.fleet)
        now = told.edge
        if now is None or now.name == name_of(own.certificate):
            return None
    request = RenewRequest(make_request(own.key, name_of(own.certificate)))
    answer = server.ask("/renew", request, context)
    certificate = checked_certificate(answer, own.authority, own.key.public_key())
    check_valid_now(certificate, "the device's new certificate", now_s, "join again with a new token")
    name = name_of(certificate)
    edge = msgspec.structs.replace(own.about.edge, name=name)
    write_certificates(own.folder, answer, authority_pem, msgspec.structs.replace(own.about, edge=edge))
    _take_name(folder, name)
    return read_identity(folder.path)


def _take_name(folder: IdentityFolder, name: str) -> None:
    if write_fields(folder.config, {"name": name}, "data.jsonl", may_change=True):
        _LOG.warning("the operator has named this device %s; it takes the name with its next start", name)


class Renewals:
    """Renews the certificate of a running device in a thread: at once where it is due, and then with each check.

    Args:
        config: the configuration file.
        clock_s: this machine's time, in seconds since 1970.
        every_s: seconds between two checks.
    """

    def __init__(self, config: Path, clock_s: Callable[[], float], every_s: float = CHECK_EVERY_S) -> None:
        self._config, self._clock_s, self._every_s = config, clock_s, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="renewals", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End, after the request that is under way if there is one."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_REQUEST_S)

    def _run(self) -> None:
        while True:
            try:
                renewed = renew_if_due(self._config, self._clock_s(), asks_name=True)
            except EnrolmentError as error:
                _LOG.error("%s", no_member(error))
            except CoveyError as error:
                _LOG.warning(
                    "the server cannot be asked about this device's certificate now; it is asked again: %s", error
                )
            else:
                if renewed is not None:
                    _LOG.info("the certificate was renewed until %s", renewed.certificate.not_valid_after_utc)
            if self._stop.wait(self._every_s):
                return
