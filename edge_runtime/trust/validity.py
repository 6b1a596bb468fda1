"""Whether a certificate is valid by this machine's clock, which may be wrong: a board may start in the past."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edge_runtime.errors import NetworkError

if TYPE_CHECKING:
    from cryptography import x509

RENEW_SHARE = 1 / 3
"""A certificate is renewed when less than this share of its time is left."""
_SET_CLOCK = "set the clock (sudo timedatectl set-ntp true)"


class ClockError(NetworkError):
    """A certificate is not valid by this machine's clock, which may be set later: another attempt may succeed."""


def date_words(at_s: float) -> str:
    """Return seconds since 1970 as a person reads them."""
    try:
        return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at_s))
    except (OverflowError, ValueError, OSError):
        return f"{at_s:.0f} s after 1970"


def check_valid_now(certificate: x509.Certificate, what: str, now_s: float, after: str) -> None:
    """Check that a certificate is valid by this machine's clock.

    Args:
        certificate: the certificate.
        what: what it is, for the error.
        now_s: this machine's time, in seconds since 1970.
        after: what to do where it has really expired.

    Raises:
        ClockError: it is not; the message has the clock's time and the certificate's.
    """
    begin_s, end_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    if now_s < begin_s:
        raise ClockError(
            f"{what} is valid from {date_words(begin_s)} on, but this machine's clock says {date_words(now_s)}",
            f"{_SET_CLOCK}; a board without a battery starts in the past",
        )
    if now_s > end_s:
        raise ClockError(
            f"{what} was valid until {date_words(end_s)}, but this machine's clock says {date_words(now_s)}",
            f"if the clock is wrong, {_SET_CLOCK}; if it is right, {after}",
        )


def is_renewal_due(certificate: x509.Certificate, now_s: float) -> bool:
    """Whether less than a third of a certificate's time is left."""
    begin_s, end_s = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return end_s - now_s < RENEW_SHARE * (end_s - begin_s)
