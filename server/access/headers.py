"""HTTP headers: what a browser may do with an answer, and from where a request comes."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing inside a page runs, and nothing comes from elsewhere."""
_LOCAL_HOSTS = ("localhost", "covey")
"""Names of the socket's side: of a tunnel's end, and of Covey's own client."""
_ALWAYS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would send the origin "null" with every form
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HSTS = ("strict-transport-security", "max-age=31536000")

Pairs = list[tuple[bytes, bytes]]


def with_security(headers: Iterable[tuple[bytes, bytes]], *, is_https: bool) -> Pairs:
    """Return an answer's headers with those that protect it; nothing is kept by a cache unless it says so itself.

    Args:
        headers: of the answer.
        is_https: whether browsers reach the server over HTTPS.
    """
    found = [(name, value) for name, value in headers if name.decode("latin-1").lower() not in _ALWAYS]
    wanted = [*_ALWAYS.items(), *([_HSTS] if is_https else [])]
    if all(name.lower() != b"cache-control" for name, _ in found):
        wanted.append(("cache-control", "no-store"))
    return found + [(name.encode(), value.encode()) for name, value in wanted]


def is_own_origin(headers: Mapping[str, str], public: str | None) -> bool:
    """Whether a request that changes something comes from a page of this server, or from no browser.

    Browsers say where a form or a script is from; a command says nothing.

    Args:
        headers: of the request, by their names in small letters.
        public: the origin under which browsers reach the server; None: the one of the request's host.
    """
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    if origin is None:
        return True
    if public is not None and origin == public:
        return True
    try:
        return urlsplit(origin).netloc != "" and urlsplit(origin).netloc == headers.get("host", "")
    except ValueError:
        return False


def is_local_host(host: str, public: str | None) -> bool:
    """Whether a host is one under which the socket can be reached, so that no name on the Internet leads to it."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if public is not None and name == urlsplit(public).hostname:
            return True
        return name in _LOCAL_HOSTS or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def last_forwarded(value: str) -> str | None:
    """Return the address that the nearest proxy has appended to ``X-Forwarded-For``; None: it is no address."""
    try:
        return str(ipaddress.ip_address(value.rsplit(",", 1)[-1].strip()))
    except ValueError:
        return None
