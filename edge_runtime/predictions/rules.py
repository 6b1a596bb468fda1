"""``[predict]`` of edge.toml: whether, where and how much this device predicts for others; checked when it is read."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import msgspec

from edge_runtime.errors import ConfigError
from edge_runtime.values import Strict

if TYPE_CHECKING:
    from pathlib import Path

FEWEST_TOKEN_CHARACTERS = 16
_LARGEST_PORT = 65535
_OTHERS = 0o077


class PredictRules(Strict, frozen=True):
    """``[predict]``: what answers texts on this device, and takes corrections. Without it nothing does.

    Attributes:
        listen: address and port of the HTTP endpoint, ``127.0.0.1:8090``; None: there is none.
        allow_remote: whether ``listen`` may be an address that other machines reach; it needs a token.
        token_file: a file with the token that every request must bring, readable by its owner alone; relative to the
            configuration file. None: none is asked for.
        answer_server: whether the server of the fleet may ask too, over MQTT; see agent/predict_requests.py.
        texts_per_minute: texts that are answered, whoever asks.
        feedback_per_minute: corrections that are taken.
        max_new_tokens: causal-lm: largest number of new tokens that a request can ask for.
    """

    listen: str | None = None
    allow_remote: bool = False
    token_file: str | None = None
    answer_server: bool = False
    texts_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 600
    feedback_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 60
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 64

    def __post_init__(self) -> None:
        if self.listen is None:
            return
        if not address_of(self.listen).is_loopback:
            if not self.allow_remote:
                raise ValueError(
                    f"listen is {self.listen!r}, which other machines reach: write 127.0.0.1, or set allow_remote = "
                    "true and token_file"
                )
            if self.token_file is None:
                raise ValueError(f"listen is {self.listen!r}, which other machines reach, and there is no token_file")


@dataclass(frozen=True)
class Address:
    """Where the endpoint listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def is_v6(self) -> bool:
        """Whether it is an address of IP version 6."""
        return ":" in self.host


def address_of(listen: str) -> Address:
    """Return the address in ``listen``.

    Raises:
        ValueError: it is not ``ADDRESS:PORT`` with an IP address or ``localhost``.
    """
    host, colon, port = listen.rpartition(":")
    wrong = ValueError(f"listen is {listen!r}, which is not an IP address and a port, as in 127.0.0.1:8090")
    if not colon or not (port.isascii() and port.isdigit()) or int(port[:6]) > _LARGEST_PORT:
        raise wrong
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise wrong
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise wrong from error
    return Address(str(address), int(port))


def read_token(path: Path) -> str:
    """Return the token of a file.

    Raises:
        ConfigError: it cannot be read, others can read it, or it has no token that is long enough.
    """
    hint = f"write one: (umask 077; openssl rand -hex 24 > {path})"
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ConfigError(f"[predict] token_file: cannot read {path}: {error.strerror}", hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"[predict] token_file: {path} has other characters than ASCII", hint) from error
    if mode & _OTHERS:
        raise ConfigError(f"[predict] token_file: others can read {path}", f"chmod 600 {path}")
    if len(text) < FEWEST_TOKEN_CHARACTERS or any(character.isspace() for character in text):
        what = f"[predict] token_file: {path} has no token of at least {FEWEST_TOKEN_CHARACTERS} characters in one word"
        raise ConfigError(what, hint)
    return text
