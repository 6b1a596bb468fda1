"""The table of causes for HTTP: from an answer that is no success to the setting that is wrong, without its HTML."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus

from edge_runtime.errors import without_user
from edge_runtime.network.cause import Cause, Place

COME_AGAIN = "the blobs cannot be reached now; ask again later"
"""What covey serve says with 503 where the bucket that has its blobs does not answer."""
OWN_WORDS = ("no such blob", "no such release", "no open plan expects this blob", "more than the announced", COME_AGAIN)
"""How the bodies of covey serve's own 404, 413 and 503 begin; a proxy and other servers write something else."""
NO_MEMBER = "the certificate was revoked, or was not issued to a device of this fleet"
"""What covey serve says to who is no member, as the error of a JSON body."""
_ADDRESS = "covey serve --public-url (or server_url in edge.toml)"
_FORWARD = (
    f"set {_ADDRESS} to the address under which /blobs leads to covey serve; "
    "a reverse proxy must pass the path on unchanged (nginx: location /blobs/ { proxy_pass http://127.0.0.1:8080; })"
)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer that is no success, or not what was asked for.

    Attributes:
        code: its status.
        method: what was asked.
        url: the address that was asked.
        body: the first characters of its body.
        location: where it redirects to; None: nowhere.
        sent_bytes: size of the request's body.
        is_of_uploads: whether it has the header of covey serve's uploads (an answer to HEAD has no body to tell).
        again_after_s: seconds after which to ask again; None: it does not say.
    """

    code: int
    method: str
    url: str
    body: str = ""
    location: str | None = None
    sent_bytes: int = 0
    is_of_uploads: bool = False
    again_after_s: float | None = None

    @property
    def is_own(self) -> bool:
        """Whether covey serve itself answered."""
        return self.is_of_uploads or self.is_to_no_member or self.body.startswith(OWN_WORDS)

    @property
    def is_to_no_member(self) -> bool:
        """Whether covey serve itself refuses the certificate that was shown."""
        return self.code == HTTPStatus.FORBIDDEN and self.body.startswith(f'{{"error":"{NO_MEMBER}"')

    @property
    def words(self) -> str:
        """The status in words; never a page of HTML."""
        if self.is_to_no_member:
            return f"{self.code}: {NO_MEMBER}"
        if self.is_own and self.body:
            return f"{self.code}: {self.body.splitlines()[0]}"
        if self.is_own and self.code == HTTPStatus.NOT_FOUND:
            return f"{self.code}: {OWN_WORDS[2]}"
        try:
            return f"{self.code} {HTTPStatus(self.code).phrase}"
        except ValueError:
            short = self.body.strip()
            return f"{self.code}" if "<" in short or len(short) > 200 else f"{self.code} {short}".strip()


def answer_cause(answer: Answer, place: Place) -> Cause:
    """Return the cause that an HTTP answer stands for."""
    asked = f"{place} answered {answer.words} to {answer.method} {answer.url}"
    if answer.is_to_no_member:
        return Cause("no-member", asked, "join with a new token: covey fleet token NAME")
    if answer.is_own:
        is_busy = answer.code == HTTPStatus.SERVICE_UNAVAILABLE
        why = "its blobs cannot be reached" if is_busy else "it has begun another round, or another job"
        return Cause("http", asked, f"read the log of covey serve: {why}")
    if "HTTPS port" in answer.body:
        return Cause("tls-wanted", f"{asked}: the port speaks HTTPS", f"write https:// in {_ADDRESS}")
    if "SSL certificate was sent" in answer.body:  # nginx's words
        own = "set cert_file and key_file in [tls] of edge.toml, or let the proxy ask for no client certificate"
        return Cause("client-certificate-missing", f"{asked}: it asks for a client certificate", own)
    if answer.location is not None:
        return Cause(
            "http", f"{asked}: a redirect to {without_user(answer.location)}", f"set {_ADDRESS} to where it redirects"
        )
    finding, remedy = _TABLE.get(answer.code, ("", f"read the server's log; check {_ADDRESS}"))
    return Cause("http", asked + finding, remedy.replace("{MB}", f"{max(1, -(-answer.sent_bytes // 2**20)) + 1} MB"))


_LOGIN = ": something before covey serve asks for a login"
_NO_LOGIN = "let /blobs/ through without a login: devices have none (a blob is known by its hash)"
_BEHIND = ": a proxy does not reach covey serve behind it"
_TABLE: dict[int, tuple[str, str]] = {
    HTTPStatus.UNAUTHORIZED: (_LOGIN, _NO_LOGIN),
    HTTPStatus.FORBIDDEN: (": something before covey serve forbids it", _NO_LOGIN),
    HTTPStatus.NOT_FOUND: (": it is not covey serve that answers there", _FORWARD),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        ": something before covey serve lets other methods through only",
        "let the reverse proxy pass HEAD and PATCH on for /blobs/",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        ": a proxy before covey serve takes smaller bodies only",
        "raise its limit to {MB} (nginx: client_max_body_size; Apache: LimitRequestBody; Caddy: request_body max_size)",
    ),
    HTTPStatus.BAD_GATEWAY: (_BEHIND, "start covey serve, and check the proxy's address of it (nginx: proxy_pass)"),
    HTTPStatus.SERVICE_UNAVAILABLE: (_BEHIND, "start covey serve, and check the proxy's address of it"),
    HTTPStatus.GATEWAY_TIMEOUT: (
        _BEHIND,
        "start covey serve, and raise the proxy's time limit (nginx: proxy_read_timeout)",
    ),
    HTTPStatus.NOT_IMPLEMENTED: (": that server knows no such method", _FORWARD),
}


def not_covey(place: Place, url: str) -> Cause:
    """Return the cause of a server that answers with a page where covey serve sends bytes."""
    return Cause("http", f"{place} answered with a web page to GET {url}: it is not covey serve that answers", _FORWARD)
