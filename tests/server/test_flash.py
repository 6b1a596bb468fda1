"""Cards are made from stock images of each kind, and read back; what cannot become a card is refused before."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import time
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest
import tomllib
import yaml
from card_images import FORMATS, require_card_tools, write_image, write_wheels

from edge_runtime.errors import ConfigError, StorageError
from edge_runtime.trust.token import encode_token, new_token
from server.cli import main
from server.flash.card import Card, RootFile
from server.flash.device_wheel import requirements
from server.flash.first_boot import look_into
from server.flash.needed import missing_packages
from server.flash.places import LAUNCHER
from server.flash.source import copy_image

if TYPE_CHECKING:
    from pathlib import Path

KEY = "ssh-ed25519 " + "A" * 68 + " somebody@laptop"


@pytest.fixture(autouse=True)
def _tools() -> None:
    require_card_tools()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wheels(tmp_path_factory.mktemp("wheels") / "wheels", [*requirements(), "pip"])


class Desk:
    """A folder with what an operator has, and ``covey flash`` run in it."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        (folder / "key.pub").write_text(KEY + "\n")
        self.tokens = folder / "tokens"
        self.write_tokens("pi-a", "pi-b")

    def write_tokens(self, *names: str) -> None:
        made = [new_token("https://covey.example:8443", bytes(32), name, int(time.time()) + 3600) for name in names]
        self.tokens.write_text("".join(f"{token.device} {encode_token(token)}\n" for token in made))

    def flash(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        words = ["--ssh-key", str(self.folder / "key.pub"), "--wheels", str(self.wheels)]
        words += ["--join-tokens", str(self.tokens), "--time-zone", "Europe/Berlin"]
        return self.run("rpi", *words, *arguments, code=code)

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = main(["flash", *arguments, "--format", "json"])
        assert found == code, (out.getvalue(), err.getvalue())
        self.said = err.getvalue()
        answer: dict[str, Any] = json.loads(out.getvalue())
        return answer


@pytest.fixture
def desk(tmp_path: Path, wheels: Path) -> Desk:
    (tmp_path / "desk").mkdir()
    return Desk(tmp_path / "desk", wheels)


KINDS = [kind if kind == "cloud-init" else pytest.param(kind, marks=pytest.mark.slow) for kind in FORMATS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_card_of_each_kind_is_made_and_read_back(desk: Desk, tmp_path: Path, kind: str) -> None:
    stock = write_image(tmp_path / "stock", kind)
    out = desk.folder / "pi-a.img"
    made = desk.flash("--image", str(stock), "--device", "pi-a", "--out", str(out))
    assert kind in desk.said
    found = desk.run("check", str(out))
    assert found["problems"] == []
    assert made["cards"] == [{"card": str(out), **found}]
    assert (found["device"], found["hostname"], found["first_boot"]) == ("pi-a", "pi-a", kind)
    assert found["server_url"] == "https://covey.example:8443"
    card = Card(out)
    assert card.mode_of("/opt/covey/join-token") == (0o100600, 0)
    assert card.read_root("/etc/systemd/system/multi-user.target.wants/covey-edge.service")
    with tarfile.open(fileobj=io.BytesIO(card.read_root("/opt/covey/env.tar") or b"")) as tar:
        names = tar.getnames()
    assert "env-a/lib/python3.11/site-packages/edge_runtime/agent/agent.py" in names
    assert names[-1] == "env-a/slot.json"  # what was cut off has no marker
    assert any("a rollout can replace its Covey" in step for step in found["steps"])
    assert not any("/server/" in name or "/export/" in name for name in names)
    assert sorted(desk.folder.glob(".*")) == []  # nothing is left over
    check_settings(card, kind)


def check_settings(card: Card, kind: str) -> None:
    cmdline = card.read_boot("cmdline.txt").decode().split()
    assert "root=PARTUUID=1-02" in cmdline  # what was there stays
    if kind == "firstrun":
        text = card.read_boot("firstrun.sh").decode()
        assert "systemd.run=/boot/firmware/firstrun.sh" in cmdline
        assert KEY in text
        assert "set_timezone Europe/Berlin" in text
    elif kind == "cloud-init":
        settings = yaml.safe_load(card.read_boot("user-data"))
        assert settings["users"][0]["ssh_authorized_keys"] == [KEY]
        instance = yaml.safe_load(card.read_boot("meta-data"))["instance-id"]
        assert f"ds=nocloud;i={instance}" in cmdline
    else:
        text = card.read_boot("rpi-preseed.toml").decode()
        assert 'hostname = "pi-a"' in text
        # rpi-preseed 0.1.0 leaves the running name and SSH to the second boot, and loses the keys of [ssh].
        name, keys, start = tomllib.loads(text)["runcmd"]["early"]
        assert name == "hostname pi-a"
        assert KEY in keys
        assert start == "systemctl start --no-block ssh"
        assert len(cmdline) == 5


@pytest.mark.slow
def test_a_card_that_is_made_again_is_set_up_again(desk: Desk, tmp_path: Path) -> None:
    """cloud-init keeps what it did by the instance id."""
    stock = write_image(tmp_path / "stock", "cloud-init")
    ids = []
    for name in ("first.img", "second.img"):
        desk.flash("--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / name))
        ids.append(yaml.safe_load(Card(desk.folder / name).read_boot("meta-data"))["instance-id"])
    assert len(set(ids)) == 2


def test_cloud_init_settings_of_the_user_are_merged(desk: Desk, tmp_path: Path) -> None:
    stock = write_image(tmp_path / "stock", "cloud-init")
    mine = desk.folder / "mine.yaml"
    mine.write_text("#cloud-config\npackages: [htop]\nruncmd:\n- [touch, /mine]\nusers:\n- {name: me}\n")
    desk.flash(
        *("--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / "a.img"), "--user-data", str(mine)),
        *("--wifi", "my net", "--wifi-open", "--wifi-country", "de"),
    )
    card = Card(desk.folder / "a.img")
    settings = yaml.safe_load(card.read_boot("user-data"))
    assert settings["packages"] == ["htop"]
    assert settings["runcmd"][-1] == ["touch", "/mine"]
    assert [user["name"] for user in settings["users"]] == ["pi", "me"]
    network = yaml.safe_load(card.read_boot("network-config"))["network"]["wifis"]["wlan0"]
    assert network["access-points"] == {"my net": {"auth": {"key-management": "none"}}}
    assert network["regulatory-domain"] == "DE"
    mine.write_text("#cloud-config\nhostname: other\n")
    answer = desk.flash(
        *("--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / "b.img"), "--user-data", str(mine)),
        code=ConfigError.exit_code,
    )
    assert "hostname" in answer["error"]
    assert not (desk.folder / "b.img").exists()


@pytest.mark.slow
def test_a_root_partition_without_room_grows(desk: Desk, tmp_path: Path) -> None:
    stock = write_image(tmp_path / "stock", root_mib=16)
    rows = desk.folder / "rows.csv"
    rows.write_text("text,label\n" + "a text,1\n" * 400_000)
    desk.flash("--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / "a.img"), "--data", str(rows))
    card = Card(desk.folder / "a.img")
    assert card.root.size_bytes > 16 << 20
    assert card.read_root("/var/lib/covey/data/rows.csv") == rows.read_bytes()
    card.check_root()


@pytest.mark.slow
def test_a_list_of_names_gets_a_card_each_and_never_the_same_twice(desk: Desk, tmp_path: Path) -> None:
    stock = write_image(tmp_path / "stock")
    names, out, manifest = desk.folder / "names.txt", desk.folder / "cards", desk.folder / "m.rpi-imager-manifest"
    names.write_text("pi-a\n\n# a remark\npi-b\n")
    out.mkdir()
    arguments = ("--image", str(stock), "--batch", str(names), "--out", str(out), "--manifest", str(manifest))
    assert len(desk.flash(*arguments)["cards"]) == 2
    tokens = [Card(out / f"{name}.img").read_root("/opt/covey/join-token") for name in ("pi-a", "pi-b")]
    assert len(set(tokens)) == 2
    listed = json.loads(manifest.read_text())["os_list"]
    assert [entry["name"] for entry in listed] == ["Covey pi-a", "Covey pi-b"]
    assert listed[0]["extract_sha256"] == hashlib.sha256((out / "pi-a.img").read_bytes()).hexdigest()
    for path in out.iterdir():
        path.unlink()
    assert desk.flash(*arguments)["cards"] == []  # they have their cards
    names.write_text("pi-a\npi-a\n")
    assert "twice" in desk.flash(*arguments, code=ConfigError.exit_code)["error"]


def test_an_image_of_an_unknown_kind_is_refused_with_what_was_found(desk: Desk, tmp_path: Path) -> None:
    stock = write_image(tmp_path / "stock", "other")
    answer = desk.flash(
        "--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / "a.img"), code=ConfigError.exit_code
    )
    assert "rootwait" in answer["error"]
    assert "config.txt" in answer["error"]
    assert not (desk.folder / "a.img").exists()


@pytest.mark.parametrize("fault", ["cut", "no table", "old python", "empty", "sha256", "32 bit"])
def test_what_is_no_stock_image_is_refused(desk: Desk, tmp_path: Path, fault: str) -> None:
    python = "3.9" if fault == "old python" else "3.11"
    stock = write_image(tmp_path / "stock", python=python, loader="armhf" if fault == "32 bit" else "aarch64")
    arguments = ["--image", str(stock), "--device", "pi-a", "--out", str(desk.folder / "a.img")]
    if fault == "cut":
        os.truncate(stock, stock.stat().st_size - (8 << 20))
    elif fault == "no table":
        stock.write_bytes(bytes(4 << 20))
    elif fault == "empty":
        stock.write_bytes(b"")
    elif fault == "sha256":
        arguments += ["--sha256", "0" * 64]
    answer = desk.flash(*arguments, code=ConfigError.exit_code)
    assert answer["hint"]
    assert list(desk.folder.glob("*.img*")) == []
    assert sorted(desk.folder.glob(".*")) == []


def packed_as(kind: str, data: bytes) -> bytes:
    if kind == "img":
        return data
    return lzma.compress(data) if kind == "xz" else gzip.compress(data)


@pytest.mark.parametrize("kind", ["img", "xz", "gz", "zip"])
def test_images_are_unpacked_with_their_holes(tmp_path: Path, kind: str) -> None:
    data = b"\x01" * 5000 + bytes(3 << 20) + b"\x02" * (512 - 5000 % 512)
    data += bytes(-len(data) % 512)
    source = tmp_path / f"image.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/image.img", data)
            archive.writestr("readme.txt", "read")
    else:
        source.write_bytes(packed_as(kind, data))
    packed = hashlib.sha256(source.read_bytes()).hexdigest()
    (tmp_path / f"image.{kind}.sha256").write_text(f"{packed}  image\n")
    seen: list[tuple[int, int]] = []
    copied = copy_image(source, tmp_path / "out", None, lambda done, size: seen.append((done, size)))
    assert (tmp_path / "out").read_bytes() == data
    assert copied.sha256 == packed
    assert copied.unpacked_sha256 == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "out").stat().st_blocks * 512 < len(data) // 2
    assert seen[-1][0] == seen[-1][1]
    (tmp_path / f"image.{kind}.sha256").write_text("1" * 64)
    with pytest.raises(ConfigError, match=packed):
        copy_image(source, tmp_path / "out", None, lambda _done, _size: None)


@pytest.mark.parametrize("kind", ["xz", "gz", "zip"])
def test_a_packed_image_that_is_cut_short_is_named(tmp_path: Path, kind: str) -> None:
    source = tmp_path / f"image.{kind}"
    data = os.urandom(1 << 20)
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("image.img", data)
    else:
        source.write_bytes(packed_as(kind, data))
    os.truncate(source, source.stat().st_size // 2)
    with pytest.raises(StorageError, match="cut short or damaged"):
        copy_image(source, tmp_path / "out", None, lambda _done, _size: None)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/opt/covey/env.tar", "/opt/covey/join-token", "/opt/covey/setup.sh", LAUNCHER])
def test_check_says_what_is_wrong_with_a_card(desk: Desk, tmp_path: Path, path: str) -> None:
    stock = write_image(tmp_path / "stock")
    out = desk.folder / "a.img"
    desk.flash("--image", str(stock), "--device", "pi-a", "--out", str(out))
    Card(out).write_root([RootFile(path, 0o644, b"damaged")])
    found = desk.run("check", str(out), code=ConfigError.exit_code)
    assert any(path in problem for problem in found["problems"])


def test_a_stock_image_is_no_card_of_covey(desk: Desk, tmp_path: Path) -> None:
    found = desk.run("check", str(write_image(tmp_path / "stock")), code=ConfigError.exit_code)
    assert any("nothing of Covey" in problem for problem in found["problems"])


def test_the_format_is_said_with_its_reason(tmp_path: Path) -> None:
    """rpi-preseed and cloud-init images also have the older helpers in them."""
    both = write_image(tmp_path / "stock", "cloud-init", files=["usr/lib/raspberrypi-sys-mods/imager_custom"])
    found = look_into(Card(both))
    assert (found.format, found.reason) == ("cloud-init", "/usr/bin/cloud-init is there")
    assert found.boot_folder == "/boot/firmware"


def test_what_a_boards_python_needs_is_decided_for_the_board_and_not_for_this_machine(tmp_path: Path) -> None:
    """pip reads conditions such as ``python_version < '3.11'`` with its own Python, whatever it installs for."""
    info = tmp_path / "covey-1.dist-info"
    info.mkdir()
    needs = ["tomli>=2; python_version < '3.11'", "no; sys_platform == 'win32'", "there>1; platform_machine=='aarch64'"]
    lines = "".join(f"Requires-Dist: {line}\n" for line in [*needs, "covey-docs; extra == 'docs'"])
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: covey\nVersion: 1\n{lines}\n")
    assert missing_packages(tmp_path, "3.10", "aarch64") == ["there>1", "tomli>=2"]
    assert missing_packages(tmp_path, "3.11", "aarch64") == ["there>1"]
    (tmp_path / "There-2.dist-info").mkdir()
    (tmp_path / "There-2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: There\nVersion: 2\n")
    assert missing_packages(tmp_path, "3.11", "aarch64") == []
