"""The two kernels: equal bit for bit, golden vectors, the choice between them, installing without a compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ROOT

from edge_runtime.errors import ConfigError
from edge_runtime.perturbation import native_kernel, numpy_kernel
from edge_runtime.perturbation.kernel import kernel, kernel_name, kernel_reason
from edge_runtime.perturbation.native_kernel import KernelMissingError
from edge_runtime.perturbation.perturb import BACK, perturb_into, perturb_many_into, rademacher
from edge_runtime.values import FloatVector

if TYPE_CHECKING:
    from edge_runtime.perturbation.native_kernel import Perturb

SOURCE = ROOT / "edge_runtime" / "native" / "kernel" / "perturb.c"
GOLDEN = ROOT / "tests" / "native" / "golden.txt"
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
COMPILER = shutil.which(os.environ.get("CC", "cc"))
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

SEEDS = st.integers(0, 2**64 - 1)
SCALES = st.floats(-10, 10, width=32)
SIZES = st.sampled_from([0, 1, 255, 256, 257, 4096, 4097]) | st.integers(0, 9000)
OFFSETS = st.sampled_from([0, 1, 63, 64, 255, 256, 257, 4095, 2**40 + 3]) | st.integers(0, 2**63)


def compile_c(*arguments: str) -> None:
    assert COMPILER is not None
    subprocess.run([COMPILER, *FLAGS, *arguments], check=True)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Perturb:
    """The kernel that was installed; where none was, one that is compiled now."""
    if native_kernel.LIBRARY.exists():
        return native_kernel.load()
    if COMPILER is None:
        pytest.skip("no compiled kernel and no C compiler")
    path = tmp_path_factory.mktemp("kernel") / "perturb.so"
    compile_c("-shared", "-fPIC", str(SOURCE), "-o", str(path))
    return native_kernel.load(path)


@pytest.fixture
def choose_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    kernel.cache_clear()
    monkeypatch.delenv("COVEY_KERNEL", raising=False)
    yield monkeypatch
    kernel.cache_clear()


@settings(deadline=None)
@given(
    size=SIZES,
    offset=OFFSETS,
    terms=st.lists(st.tuples(SEEDS, SCALES), min_size=1, max_size=5),
    block=SEEDS,
    in_place=st.booleans(),
    unaligned=st.integers(0, 9),
)
def test_both_kernels_give_the_same_bits(
    native: Perturb,
    size: int,
    offset: int,
    terms: list[tuple[int, float]],
    block: int,
    in_place: bool,
    unaligned: int,
) -> None:
    seeds = np.array([seed for seed, _ in terms], dtype=np.uint64)
    scales = np.array([scale for _, scale in terms], dtype=np.float32)
    results = []
    for perturb in (native, numpy_kernel.perturb):
        clean = np.linspace(-3, 3, size + unaligned + 7, dtype=np.float32)[unaligned:-7]
        around = np.full(size + unaligned + 7, 9, dtype=np.float32)
        out = clean if in_place else around[unaligned:-7]
        before = clean.tobytes()
        perturb(out, clean, seeds, block, scales, offset)
        assert in_place or clean.tobytes() == before
        assert in_place or ((around[:unaligned] == 9).all() and (around[-7:] == 9).all())
        results.append(out.tobytes())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["native", "numpy"])
@settings(deadline=None, max_examples=50)
@given(size=st.integers(0, 3000), offset=st.integers(0, 3000), terms=st.lists(st.tuples(SEEDS, SCALES), max_size=4))
def test_many_are_one_after_the_other(
    name: str, size: int, offset: int, terms: list[tuple[int, float]], native: Perturb
) -> None:
    perturb = native if name == "native" else numpy_kernel.perturb
    clean = np.linspace(-1, 1, size, dtype=np.float32)
    expected = clean.copy()
    for seed, scale in terms:
        expected += np.float32(scale) * rademacher(seed, BACK, offset, offset + size)
    out = clean.copy()
    for seed, scale in terms:
        perturb(out, out, np.array([seed], np.uint64), BACK, np.array([scale], np.float32), offset)
    assert out.tobytes() == expected.tobytes()
    many = np.empty_like(clean)
    perturb_many_into(many, clean, [seed for seed, _ in terms], BACK, [scale for _, scale in terms], offset)
    assert many.tobytes() == expected.tobytes()


def test_more_seeds_than_go_at_a_time_and_more_than_a_piece(native: Perturb) -> None:
    size, seeds = (1 << 15) + 300, np.arange(150, dtype=np.uint64)
    scales = np.linspace(-1, 1, 150, dtype=np.float32)
    outs = [np.empty(size, dtype=np.float32) for _ in range(2)]
    clean = np.ones(size, dtype=np.float32)
    for out, perturb in zip(outs, (native, numpy_kernel.perturb), strict=True):
        perturb(out, clean, seeds, BACK, scales, 129)
    assert outs[0].tobytes() == outs[1].tobytes()
    for seed, scale in zip(seeds.tolist(), scales.tolist(), strict=True):
        clean += np.float32(scale) * rademacher(seed, BACK, 129, 129 + size)
    assert outs[0].tobytes() == clean.tobytes()


def golden_cases() -> list[list[str]]:
    lines = GOLDEN.read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def golden_clean(size: int) -> FloatVector:
    index = np.arange(size, dtype=np.uint64)
    bits = (index * 2654435761 % 2**32 % 0x7F000000) ^ ((index << 31) & (2**32 - 1))
    return bits.astype(np.uint32).view(np.float32)


def golden_result(perturb: Perturb, case: list[str]) -> str:
    size, offset, in_place, block = (int(value) for value in case[1:5])
    seeds = np.array([int(seed) for seed in case[5::2]], dtype=np.uint64)
    scales = np.array([int(bits, 16) for bits in case[6::2]], dtype=np.uint32).view(np.float32)
    clean = golden_clean(size)
    out = clean if in_place else np.empty_like(clean)
    perturb(out, clean, seeds, block, scales, offset)
    return hashlib.sha256(out.astype("<f4", copy=False).tobytes()).hexdigest()


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: "-".join(case[1:5]))
def test_golden_vectors(native: Perturb, case: list[str]) -> None:
    """Pinned: other bits would change every adapter that was ever replayed. ``.ci/aarch64`` checks the same on ARM."""
    assert golden_result(numpy_kernel.perturb, case) == case[0]
    assert golden_result(native, case) == case[0]


@needs_compiler
@pytest.mark.parametrize(
    "flags", [["-DWIDEST=0"], ["-DWIDEST=256"], ["-DWIDEST=512"], ["-U__SIZEOF_INT128__"], ["-O0"], ["-O2"]], ids=str
)
def test_every_way_through_the_c_code_gives_the_golden_bits(flags: list[str], tmp_path: Path) -> None:
    program = tmp_path / "golden"
    compile_c(*flags, str(SOURCE), str(ROOT / "tests" / "native" / "golden.c"), "-o", str(program))
    for expected, *arguments in golden_cases():
        result = subprocess.run([str(program), *arguments], check=True, capture_output=True).stdout
        assert hashlib.sha256(result).hexdigest() == expected, arguments


@needs_compiler
@pytest.mark.parametrize("flag", ["-U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__", "-ffast-math"])
def test_where_bits_would_differ_it_does_not_compile(flag: str, tmp_path: Path) -> None:
    command = [str(COMPILER), "-std=c11", *flag.split(), "-c", str(SOURCE), "-o", str(tmp_path / "x.o")]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode != 0
    assert "#error" in result.stderr


def test_the_choice_is_visible(choose_again: pytest.MonkeyPatch) -> None:
    assert kernel_name() in {"native", "numpy"}
    assert kernel_reason()
    choose_again.setattr(native_kernel, "load", lambda: (_ for _ in ()).throw(KernelMissingError("no compiler")))
    kernel.cache_clear()
    assert kernel_name() == "numpy"
    assert "no compiler" in kernel_reason()


def test_the_choice_can_be_forced(choose_again: pytest.MonkeyPatch, native: Perturb) -> None:
    choose_again.setattr(native_kernel, "load", lambda: native)
    for name in ("native", "numpy"):
        choose_again.setenv("COVEY_KERNEL", name)
        kernel.cache_clear()
        assert kernel_name() == name
        assert "COVEY_KERNEL" in kernel_reason()
        out = np.zeros(700, dtype=np.float32)
        perturb_into(out, out, 5, BACK, 1.0)
        assert np.array_equal(out, rademacher(5, BACK, 0, 700))


def test_a_choice_that_cannot_be_followed_is_an_error(choose_again: pytest.MonkeyPatch) -> None:
    choose_again.setenv("COVEY_KERNEL", "fast")
    with pytest.raises(ConfigError, match="native or numpy"):
        kernel_name()
    choose_again.setenv("COVEY_KERNEL", "native")
    choose_again.setattr(native_kernel, "load", lambda: (_ for _ in ()).throw(KernelMissingError("no compiler")))
    with pytest.raises(ConfigError, match="install a C compiler"):
        kernel_name()


def test_a_library_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(KernelMissingError, match="not built"):
        native_kernel.load(tmp_path / "perturb.so")
    (tmp_path / "perturb.so").write_bytes(b"not a library")
    with pytest.raises(KernelMissingError, match="does not load"):
        native_kernel.load(tmp_path / "perturb.so")


@needs_compiler
@pytest.mark.parametrize(("abi", "reason"), [(99, "interface 99"), (1, "bits are not NumPy's")])
def test_a_library_of_another_version_or_with_wrong_bits_is_refused(abi: int, reason: str, tmp_path: Path) -> None:
    source = tmp_path / "other.c"
    source.write_text(f"void covey_perturb(void) {{}}\nunsigned covey_perturb_abi(void) {{ return {abi}; }}\n")
    compile_c("-shared", "-fPIC", str(source), "-o", str(tmp_path / "perturb.so"))
    with pytest.raises(KernelMissingError, match=reason):
        native_kernel.load(tmp_path / "perturb.so")


def test_arrays_that_a_pointer_cannot_describe() -> None:
    """A view with gaps goes through NumPy; what would be written wrongly is refused."""
    gaps = np.zeros(2000, dtype=np.float32)[::2]
    perturb_into(gaps, gaps, 3, BACK, 1.0)
    assert np.array_equal(gaps, rademacher(3, BACK, 0, 1000))
    whole = np.zeros(100, dtype=np.float32)
    with pytest.raises(ValueError, match="in common"):
        perturb_into(whole[1:], whole[:-1], 3, BACK, 1.0)
    fixed = np.zeros(100, dtype=np.float32)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        perturb_into(fixed, fixed, 3, BACK, 1.0)
    with pytest.raises(ValueError, match="float32"):
        perturb_into(np.zeros(100), np.zeros(100), 3, BACK, 1.0)  # type: ignore[arg-type]
    perturb_into(whole, fixed, 3, BACK, 1.0)


def test_bad_numbers_are_refused() -> None:
    out = np.zeros(10, dtype=np.float32)
    for seeds, scales, block, offset in (
        ([1, 2], [1.0], 0, 0),
        ([-1], [1.0], 0, 0),
        ([2**64], [1.0], 0, 0),
        ([1], [1.0], -1, 0),
        ([1], [1.0], 0, -1),
        ([1], [1.0], 0, 2**64 - 3),
    ):
        with pytest.raises(ValueError):
            perturb_many_into(out, out, seeds, block, scales, offset)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("compiler", [pytest.param(COMPILER, marks=needs_compiler), "/bin/false"])
def test_the_package_installs_with_and_without_a_compiler(compiler: str, tmp_path: Path) -> None:
    tree, installed = tmp_path / "tree", tmp_path / "installed"
    shutil.copytree(ROOT / "edge_runtime", tree / "edge_runtime", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("COVEY_", "PYTHON"))} | {"CC": compiler}
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "install", "--no-deps", "--target", str(installed), str(tree)]
    subprocess.run(command, check=True, env=environment)
    code = (
        "import edge_runtime.perturbation.kernel as k, json\n"
        "print(k.__file__, k.kernel_name())\n"
        "import os; os.environ['COVEY_KERNEL'] = 'native'; k.kernel.cache_clear(); k.kernel_name()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
        env=environment | {"PYTHONPATH": str(installed)},
    )
    file, name = result.stdout.split()
    assert Path(file).is_relative_to(installed)
    if compiler == "/bin/false":
        assert name == "numpy"
        assert "no C compiler" in result.stderr
    else:
        assert name == "native"
        assert result.returncode == 0, result.stderr
