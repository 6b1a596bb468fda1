"""What tests of ``covey flash jetson`` share: an operator's desk, and the making itself."""

from __future__ import annotations

import io
import json
import os
import time
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from edge_runtime.trust.token import encode_token, new_token
from server.cli import main
from server.flash.first_boot import Settings
from server.flash.jetson import Login, make_jetson
from server.flash.l4t import look_at_l4t
from server.flash.payload import Payload

if TYPE_CHECKING:
    from pathlib import Path

    from server.flash.check import CardReport
    from server.flash.environment import Environment

KEY = "ssh-ed25519 " + "A" * 68 + " somebody@laptop"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files of the root file system are root's: run as root")


class Desk:
    """What an operator has, and ``covey flash`` run with it."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels, self.said = folder, wheels, ""
        (folder / "key.pub").write_text(KEY + "\n")
        self.tokens = folder / "tokens"
        self.write_tokens("orin-a", "orin-b")

    def write_tokens(self, *names: str) -> None:
        self.tokens.write_text("".join(f"{name} {token_of(name)}\n" for name in names))

    def flash(self, l4t: Path, *arguments: str, device: str = "orin-a", code: int = 0) -> dict[str, Any]:
        words = ["--l4t", str(l4t), "--device", device, "--ssh-key", str(self.folder / "key.pub")]
        words += ["--join-tokens", str(self.tokens)]
        if "--index-url" not in arguments:
            words += ["--wheels", str(self.wheels)]
        return self.run("jetson", *words, *arguments, code=code)

    def make(self, l4t: Path, *arguments: str, **options: Any) -> dict[str, Any]:
        return self.flash(l4t, "--accept-license", *arguments, **options)

    def check(self, l4t: Path, code: int = 0) -> dict[str, Any]:
        return self.run("check", "--l4t", str(l4t), code=code)

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = main(["flash", *arguments, "--format", "json"])
        assert found == code, (out.getvalue(), err.getvalue())
        self.said = err.getvalue() + out.getvalue()
        answer: dict[str, Any] = json.loads(out.getvalue()) if out.getvalue() else {}
        return answer


def token_of(device: str) -> str:
    return encode_token(new_token("https://covey.example:8443", bytes(32), device, int(time.time()) + 3600))


def make(l4t: Path, environment: Environment, device: str = "orin-a", *, joins: bool = True) -> CardReport:
    """Make a Linux_for_Tegra into a device's, as the command does."""
    found = look_at_l4t(l4t)
    login = Login(min(found.users)) if found.users else Login("covey-admin", "a-password")
    settings = Settings(device, login.user, (KEY,), None, None, "1")
    return make_jetson(found, settings, login, Payload(device, token_of(device) if joins else None, environment))
