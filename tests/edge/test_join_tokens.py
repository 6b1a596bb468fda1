"""Join tokens: read back as they were made, and never with a character lost or altered."""

from __future__ import annotations

import string
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.errors import ConfigError, CoveyError
from edge_runtime.trust.edge_file import toml_text, write_fields
from edge_runtime.trust.messages import JoinRequest
from edge_runtime.trust.token import PREFIX, JoinToken, decode_token, encode_token, new_token, secret_sha256

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
TOKENS = st.builds(
    JoinToken,
    st.sampled_from(["https://server:8443", "https://[::1]:8443", "https://covey.example/join"]),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=8, max_size=8),
    st.binary(min_size=24, max_size=24),
    NAMES,
    st.integers(0, 2**40 - 1),
)
WORD_CHARACTERS = string.ascii_letters + string.digits + "-_"


@given(TOKENS)
@settings(deadline=None)
def test_a_token_is_read_as_it_was_made(token: JoinToken) -> None:
    assert decode_token(f" {encode_token(token)}\n") == token


@given(TOKENS, st.data())
@settings(max_examples=300, deadline=None)
def test_an_altered_character_is_found_before_anything_is_sent(token: JoinToken, data: st.DataObject) -> None:
    word = encode_token(token)
    at = data.draw(st.integers(0, len(word) - 1))
    other = data.draw(st.sampled_from([one for one in WORD_CHARACTERS if one != word[at]]))
    with pytest.raises(ConfigError) as refused:
        decode_token(word[:at] + other + word[at + 1 :])
    assert "covey fleet token" in refused.value.hint


@given(TOKENS, st.data())
@settings(deadline=None)
def test_a_lost_doubled_or_swapped_piece_is_found(token: JoinToken, data: st.DataObject) -> None:
    word = encode_token(token)
    begin = data.draw(st.integers(0, len(word) - 1))
    end = data.draw(st.integers(begin + 1, len(word)))
    for other in (
        word[:begin] + word[end:],
        word[:end] + word[begin:],
        word[:begin] + word[begin:end][::-1] + word[end:],
    ):
        if other != word:
            with pytest.raises(ConfigError):
                decode_token(other)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_no_text_is_a_token_by_chance_and_none_is_quoted(text: str) -> None:
    for word in (text, PREFIX + text):
        with pytest.raises(ConfigError) as refused:
            decode_token(word)
        assert len(text) < 20 or text not in str(refused.value)


@given(st.recursive(st.none() | st.integers() | st.binary(), st.lists, max_leaves=20))
@settings(deadline=None)
def test_another_content_with_a_right_check_sum_is_refused(content: object) -> None:
    import base64
    import hashlib

    data = msgspec.msgpack.encode(content) if _fits(content) else b"\xc1"
    word = PREFIX + base64.urlsafe_b64encode(data + hashlib.sha256(data).digest()[:4]).decode().rstrip("=")
    with pytest.raises(ConfigError):
        decode_token(word)


def _fits(content: object) -> bool:
    try:
        msgspec.msgpack.encode(content)
    except (OverflowError, msgspec.MsgspecError):
        return False
    return True


@pytest.mark.parametrize(
    "url", ["http://server:8443", "ftp://server", "https://user@server", "https://", "server:8443"]
)
def test_a_token_is_made_for_https_only(url: str) -> None:
    with pytest.raises(ConfigError):
        new_token(url, bytes(32), "pi", 0)


def test_no_secret_is_in_what_a_log_shows() -> None:
    token = new_token("https://server:8443", bytes(32), "pi", 0)
    assert token.secret.hex() not in repr(token)
    assert repr(token.secret) not in repr(token)
    assert token.secret.hex() not in repr(JoinRequest(token.id.hex(), token.secret.hex(), ""))
    assert token.secret.hex() not in secret_sha256(token.secret)
    assert new_token("https://server:8443", bytes(32), "pi", 0).secret != token.secret


# -- edge.toml ---------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES, max_size=4))
@settings(deadline=None)
def test_what_is_written_as_toml_is_read_as_it_was(table: dict[str, object]) -> None:
    assert msgspec.toml.decode(toml_text(table)) == table


def test_a_changed_field_leaves_comments_and_other_settings(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    before = '# mine\nname = "a" # short\n[data]\npath = "x" # rows\nname = "no"\n'
    path.write_text(before)
    with pytest.raises(ConfigError, match="its name is another one") as refused:
        write_fields(path, {"name": "b"}, "rows", may_change=False)
    assert "--force" in refused.value.hint
    assert path.read_text() == before
    assert write_fields(path, {"name": "b"}, "rows", may_change=True)
    assert path.read_text() == '# mine\nname = "b"\n[data]\npath = "x" # rows\nname = "no"\n'
    assert (tmp_path / "edge.toml.before-join").read_text() == before
    assert not write_fields(path, {"name": "b"}, "rows", may_change=False)
    assert write_fields(path, {"fleet": "c"}, "rows", may_change=True)
    assert msgspec.toml.decode(path.read_text()) == {"name": "b", "data": {"path": "x", "name": "no"}, "fleet": "c"}


@pytest.mark.parametrize("content", ["name = ", "\xff", "a = 2020-01-01\n"])
def test_a_configuration_that_cannot_be_kept_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CoveyError):
        write_fields(path, {"name": "b"}, "rows", may_change=True)
    assert path.read_bytes() == content.encode("latin-1")
