"""What boards must be able to load: alignment of libraries for kernels with pages of 16 KiB, and NEON in the kernel."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import zipfile
from pathlib import Path

import pytest
from arm_places import NotHereError, debian_root, emulated, emulator

from edge_runtime.errors import StorageError
from server.flash.device_wheel import make_device_wheel
from server.flash.environment import Environment, Sources, make_environment, shortcomings
from server.flash.libraries import LEAST_ALIGNMENT, NO_LIMIT, alignment, short_aligned

COMPILER, DISASSEMBLER = (shutil.which(f"aarch64-linux-gnu-{tool}") for tool in ("gcc", "objdump"))
needs_compiler = pytest.mark.skipif(
    COMPILER is None or DISASSEMBLER is None, reason="needs a cross compiler: apt install gcc-aarch64-linux-gnu"
)
_HEADER, _ENTRY = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")


def library(*alignments: int, kind: int = 1) -> bytes:
    """Return a library that has one segment for each alignment, and one of another kind with alignment 1."""
    entries = [
        _ENTRY.pack(0x6474E551, 6, 0, 0, 0, 0, 0, 1),
        *(_ENTRY.pack(kind, 5, 0, 0, 0, 64, 64, a) for a in alignments),
    ]
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    return _HEADER.pack(ident, 3, 183, 1, 0, 64, 0, 0, 64, 56, len(entries), 0, 0, 0) + b"".join(entries)


@pytest.mark.parametrize(
    ("alignments", "least"), [((0x10000, 0x10000), 0x10000), ((0x10000, 0x1000), 0x1000), ((0x4000,), 0x4000)]
)
def test_the_least_alignment_of_what_is_loaded_counts(tmp_path: Path, alignments: tuple[int, ...], least: int) -> None:
    path = tmp_path / "package" / "native.cpython-313-aarch64-linux-gnu.so"
    path.parent.mkdir()
    path.write_bytes(library(*alignments))
    (tmp_path / "libother.so.1.2").write_bytes(library(least))
    (tmp_path / "script.so").write_text("/* a linker's script */")
    assert alignment(path) == least
    assert alignment(tmp_path / "script.so") == NO_LIMIT
    found = ("libother.so.1.2", f"package/{path.name}") if least < LEAST_ALIGNMENT else ()
    assert short_aligned(tmp_path) == found


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (library(0x10000)[:40], "header is cut off"),
        (library(0x10000)[:150], "program headers are cut off"),
        (library(0x10000)[:54] + b"\0\0" + library(0x10000)[56:], "program headers are cut off"),
        (library(), "no segment to load"),
        (library(0x10000, kind=1)[:120] + _ENTRY.pack(1, 5, 0, 0, 0, 1 << 40, 0, 0x10000), "a segment is cut off"),
        (b"\x7fELF\x01\x01" + bytes(80), "another kind of machine"),
        (b"\x7fELF\x02\x02" + bytes(80), "another kind of machine"),
    ],
    ids=["header", "table", "no-entry-size", "no-segment", "segment", "32-bit", "big-endian"],
)
def test_a_damaged_library_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "libcut.so").write_bytes(data)
    with pytest.raises(StorageError, match=said) as caught:
        short_aligned(tmp_path)
    assert "libcut.so" in caught.value.what
    assert "--wheels" in caught.value.hint


def test_what_an_environment_lacks_is_said(tmp_path: Path) -> None:
    made = Environment(tmp_path / "env.tar", (), 0, has_kernel=True, short_aligned=())
    assert shortcomings(made) == []
    short = Environment(tmp_path / "env.tar", (), 0, has_kernel=False, short_aligned=("numpy/core.so",))
    kernel, pages = shortcomings(short)
    assert "gcc-aarch64-linux-gnu" in kernel
    assert "gcc-x86-64-linux-gnu" in shortcomings(short, "x86_64")[0]
    assert "numpy/core.so" in pages
    assert "Raspberry Pi 5" in pages


@needs_compiler
def test_the_kernel_of_cards_adds_in_vectors_of_four(tmp_path: Path) -> None:
    """Its loops over 32 parameters, unrolled: 8 additions of 4 floats for one term, and 16 for two."""
    wheel, has_kernel = make_device_wheel(tmp_path, "aarch64")
    assert has_kernel
    with zipfile.ZipFile(wheel) as archive:
        built = Path(archive.extract("edge_runtime/native/perturb.so", tmp_path))
    assert alignment(built) >= LEAST_ALIGNMENT
    found = instructions(built)
    additions = [line for line in found if line.startswith("fadd")]
    vectors = [line for line in additions if re.fullmatch(r"fadd\s+v\d+\.4s, v\d+\.4s, v\d+\.4s", line)]
    assert len(vectors) >= 8 + 16, found
    # One float at a time only for the 1 to 31 parameters that are left over: one addition or two.
    assert len(additions) - len(vectors) <= 3, additions
    assert sum(re.match(r"eor\s+v\d+\.16b", line) is not None for line in found) >= 8 + 16


@needs_compiler
def test_without_vectors_the_check_would_fail(tmp_path: Path) -> None:
    """The same source, compiled without vectors: the check above is one that can fail."""
    from repository import ROOT

    out = tmp_path / "scalar.so"
    flags = [
        "-std=c11",
        "-O3",
        "-fno-tree-vectorize",
        "-fno-tree-slp-vectorize",
        "-ffp-contract=off",
        "-fPIC",
        "-shared",
    ]
    source = ROOT / "edge_runtime/native/kernel/perturb.c"
    subprocess.run([str(COMPILER), *flags, str(source), "-o", str(out)], check=True)
    assert not [line for line in instructions(out) if re.match(r"fadd\s+v", line)]


def instructions(path: Path) -> list[str]:
    """Return a library's instructions, without addresses and bytes."""
    said = subprocess.run(
        [str(DISASSEMBLER), "-d", "--no-show-raw-insn", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return [line.partition(":\t")[2].strip() for line in said.splitlines() if ":\t" in line]


@needs_compiler
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_with_pages_of_16_kib_a_short_aligned_library_is_refused_and_ours_is_loaded(tmp_path: Path) -> None:
    """What the rule stands for: glibc refuses the one, and loads the other, under an emulated page size."""
    try:
        emulator()
        root = debian_root("3.13")
    except NotHereError as error:
        pytest.skip(str(error))
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }\n")
    for name, bytes_ in (("short", 0x1000), ("long", 0x10000)):
        flags = [f"-Wl,-z,max-page-size={bytes_},-z,common-page-size=4096", "-shared", "-fPIC"]
        subprocess.run([str(COMPILER), *flags, str(source), "-o", str(tmp_path / f"{name}.so")], check=True)
    assert short_aligned(tmp_path) == ("short.so",)
    code = "import ctypes, os, sys; print(os.sysconf('SC_PAGESIZE')); print(ctypes.CDLL(sys.argv[1]).one())"
    for page_bytes, name, loads in ((4096, "short", True), (16384, "short", False), (16384, "long", True)):
        place = emulated(root, "3.13", "cortex-a76", tmp_path, tmp_path, page_bytes=page_bytes)
        done = place.run("-c", code, str(tmp_path / f"{name}.so"), cwd=tmp_path)
        assert done.stdout.split()[:1] == [str(page_bytes)], done.stderr
        assert (done.returncode == 0) is loads, (page_bytes, name, done.stderr)
        assert loads or "not page-aligned" in done.stderr


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_library_of_a_card_fits_pages_of_16_kib(python: str, tmp_path: Path) -> None:
    """All wheels that cards and Jetsons carry."""
    made = make_environment(python, Sources(), tmp_path / "env.tar")
    assert made.short_aligned == ()
    names = {package.partition(" ")[0] for package in made.packages}
    assert {"numpy", "onnxruntime", "tokenizers", "msgspec", "cryptography"} <= names
