"""The HTTP address of the server, as a person or a plan gives it: checked before anything is sent to it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from edge_runtime.errors import ConfigError, wall, without_user

_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_PATH = re.compile(r"[A-Za-z0-9/._~!$&'()*+,;=:@%-]*")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._~-]+)?")
_LONGEST_NAME = 253
_HINT = "write http://server:8080 or https://server.example/covey; a name with other letters in its ASCII form (xn--…)"

_HOST_HINT = "write a name or an IP address alone, as in server.example or 192.0.2.7; a port has an option of its own"


def check_http_url(url: str, *, may_lack_host: bool = False) -> str:
    """Return an HTTP address without a slash at its end.

    Args:
        url: the address; no user, query or fragment.
        may_lack_host: whether ``http://:8080/blobs`` is allowed, which is a port on the broker's host.

    Raises:
        ConfigError: it is no http or https address, or has a host, port or path that no request can be sent to.
    """

    def wrong(reason: str) -> ConfigError:
        return ConfigError(f"{without_user(url)!r} is not an http address: {reason}", _HINT)

    if not url.isprintable() or " " in url:
        raise wrong("it has a space or a control character")
    with wall(wrong):
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    if parts.scheme not in ("http", "https"):
        raise wrong("it does not begin with http:// or https://")
    if "@" in parts.netloc or parts.query or parts.fragment or url.endswith(("?", "#")):
        raise wrong("it has a user, a query or a fragment")
    if not host and not (may_lack_host and (port is not None or parts.path.startswith("/"))):
        raise wrong("it has no host")
    if host and not (_IPV6.fullmatch(host) if ":" in host else _is_host_name(host)):
        raise wrong(f"{host!r} cannot be the name of a host")
    if not _PATH.fullmatch(parts.path):
        raise wrong(f"its path {parts.path!r} has characters that must be written as %XX")
    return url.rstrip("/")


def bracketed(host: str) -> str:
    """Return a host as it stands in an address: an IPv6 address in brackets. Nothing is checked: see url_host."""
    return f"[{host}]" if ":" in host else host


def url_host(host: str) -> str:
    """Return a host as it stands in an address: an IPv6 address in brackets.

    Args:
        host: a name or an IP address.

    Raises:
        ConfigError: it cannot be a host; ``0/`` or ``a:1@b`` would make an address of something else.
    """
    if not (_IPV6.fullmatch(host) if ":" in host else _is_host_name(host)):
        raise ConfigError(f"{host!r} cannot be the name of a host", _HOST_HINT)
    return bracketed(host)


def https_url(host: str, port: int) -> str:
    """Return the https address of a host and a port.

    Raises:
        ConfigError: ``host`` cannot be a host, or ``port`` a port.
    """
    return check_http_url(f"https://{url_host(host)}:{port}")


def _is_host_name(host: str) -> bool:
    name = host.removesuffix(".")
    return len(name) <= _LONGEST_NAME and all(_HOST_LABEL.fullmatch(label) for label in name.split("."))
