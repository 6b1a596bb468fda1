"""No message has a password that stands in an address: of the server, a mirror, a database, a bucket, a redirect."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, NetworkError, cause_of, without_user
from edge_runtime.network.cause import Place
from edge_runtime.network.http_address import check_http_url
from edge_runtime.network.http_causes import Answer, answer_cause
from edge_runtime.network.https import Https
from edge_runtime.network.mirror import Mirrors

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "s3cret"  # noqa: S105 of nobody


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:s3cret@host:80/path", "http://…@host:80/path"),
        ("see postgresql://me:s3cret@db/x now", "see postgresql://…@db/x now"),
        ("mqtts://me:a@s3cret@host", "mqtts://…@host"),
        ("http://me:a/s3cret@host", "http://…@host"),
        ("postgresql:/me:s3cret@db/x", "postgresql:/…@db/x"),
        ("me:s3cret@db/x", "me:…@db/x"),
        ("http://host/path", "http://host/path"),
        ("file:///home/me@work/x", "file:///home/me@work/x"),
        ("no address at all: a @ b", "no address at all: a @ b"),
    ],
)
def test_what_stands_before_the_host_is_left_out(text: str, shown: str) -> None:
    assert without_user(text) == shown
    assert cause_of(ValueError(text)) == shown


@given(st.text(st.characters(blacklist_categories=["Z", "C"]), min_size=8, max_size=30))
def test_no_password_comes_through(password: str) -> None:
    assert f":{password}@" not in without_user(f"cannot reach https://user:{password}@host.example/x now")


def test_a_long_text_takes_no_time() -> None:
    assert len(cause_of(ValueError("a:" * 10**6))) < 400


def the_check(url: str) -> str:
    with pytest.raises(ConfigError) as raised:
        check_http_url(url)
    return str(raised.value)


def the_mirror(url: str) -> str:
    with pytest.raises(NetworkError) as raised:
        Https(url, None)
    return str(raised.value)


@pytest.mark.parametrize(
    ("said", "url"),
    [(the_check, f"https://me:{SECRET}@host/blobs"), (the_mirror, f"ftp://me:{SECRET}@host/blobs")],
)
def test_an_address_that_is_refused_is_shown_without_it(said: Callable[[str], str], url: str) -> None:
    assert SECRET not in said(url)
    assert "host" in said(url)


def test_a_mirror_that_cannot_be_asked_is_named_without_it(caplog: pytest.LogCaptureFixture) -> None:
    assert Mirrors(None).at(f"ftp://me:{SECRET}@host/blobs") is None
    assert "host/blobs" in caplog.text
    assert SECRET not in caplog.text


def test_a_redirect_is_named_without_it() -> None:
    answer = Answer(302, "GET", "http://host/blobs/x", location=f"https://me:{SECRET}@elsewhere/x")
    cause = answer_cause(answer, Place("server", "host", 80, None))
    assert "elsewhere" in cause.finding
    assert SECRET not in cause.finding
