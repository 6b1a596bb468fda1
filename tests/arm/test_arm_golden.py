"""The golden tier on 64-bit Arm: the same pinned values, a full step, and bits that cross from machine to machine.

Each place runs the golden tests of this repository as they are, with the packages that a card carries. Bits are equal
where the design says so: perturbation, replay, encodings, signatures. Forward passes are equal within a tolerance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from arm_places import CPUS, RELEASES, NotHereError, Place, debian_root, device_site, emulated, native_python
from cryptography.hazmat.primitives.asymmetric import ec
from repository import ROOT
from step_case import RULE, STEPS, Steps, replayed_sha256, take_steps, workspaces_sha256

from edge_runtime.bundle.folder import Bundle
from edge_runtime.protocol.round_log import unpack_scalars
from edge_runtime.protocol.signed import SERVER
from edge_runtime.signing.keys import KeyBook
from edge_runtime.signing.verifier import Accepted, Verifier

pytestmark = pytest.mark.timeout(1500)
GOLDEN = {
    "perturbation": (
        "test_golden_bits",
        "test_philox_gives_the_published_answers",
        "test_philox_is_numpys_generator",
        "test_perturbing_is_one_multiply_and_one_add",
    ),
    "kernel": ("test_golden_vectors",),
    "replay": ("test_golden_adapter", "test_one_devices_replay_is_its_local_model"),
    "moment": ("test_golden_moment",),
    "protocol": ("test_golden_encodings",),
    "signed_messages": ("test_golden_envelope", "test_what_was_signed_once_verifies_for_ever"),
}
"""Golden tests that run on every place, by file of tests/edge."""
GUEST = (
    "test_it_is_the_card_s_covey_with_its_compiled_kernel",
    "test_another_machine_s_log_gives_its_bits",
    "test_the_bundle_s_golden_vectors_hold",
    "test_a_round_is_trained_and_said_and_signed",
)
"""The tests of guest_steps.py, which all must run."""
LOSS_TOLERANCE = 1e-5
SCALAR_TOLERANCE = LOSS_TOLERANCE / (2 * RULE.eps)
"""Losses may differ where a matrix product is summed in another order, and scalars are their differences."""
CI = ("3.13", "cortex-a53")
MATRIX = [
    pytest.param(
        (python, cpu), id=f"{python}-{cpu}", marks=pytest.mark.slow if (python, cpu) == CI else pytest.mark.long
    )
    for python in RELEASES
    for cpu in CPUS
]
INI = "[pytest]\nmarkers =\n    slow\n    timeout(seconds)\n"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """The environments that were made, by Python and machine."""
    return {}


def site_of(sites: dict[tuple[str, str], Path], python: str, machine: str, factory: pytest.TempPathFactory) -> Path:
    if (python, machine) not in sites:
        folder = factory.mktemp(f"env-{python}-{machine}")
        sites[python, machine] = device_site(python, folder, "aarch64" if machine == "aarch64" else "x86_64")
    return sites[python, machine]


def check_place(place: Place, bundle: Bundle, folder: Path) -> None:
    """Run the golden tests on a place; compare what it has measured with this machine's."""
    here = take_steps(bundle)
    (folder / "pytest.ini").write_text(INI)
    (folder / "here.json").write_text(json.dumps({"chain": here.chain.hex(), "losses": here.losses}))
    names = [f"{ROOT}/tests/edge/test_{file}.py::{name}" for file, tests in GOLDEN.items() for name in tests]
    flags = ["-q", "-c", str(folder / "pytest.ini"), "--rootdir", str(folder), "--import-mode=importlib"]
    flags += ["--noconftest", "-p", "no:cacheprovider", "--junitxml", str(folder / "found.xml")]
    variables = {
        "COVEY_GUEST_BUNDLE": str(bundle.path),
        "COVEY_GUEST_STEPS": str(folder / "here.json"),
        "COVEY_GUEST_OUT": str(folder / "there.json"),
        "COVEY_GUEST_SITE": str(place.site),
    }
    guest = str(ROOT / "tests/arm/guest_steps.py")
    done = place.run("-m", "pytest", *flags, *names, guest, cwd=folder, **variables)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    check_counts(folder / "found.xml")

    kept = json.loads((folder / "there.json").read_text())
    there = Steps(bytes.fromhex(kept["chain"]), kept["losses"])
    # Bits: what the board has perturbed, and where its scalars lead, here as there.
    assert kept["workspaces"] == workspaces_sha256(bundle)
    assert replayed_sha256(bundle, there) == there.log().result_sha256
    # Within a tolerance: what the forward passes gave.
    scalars = [unpack_scalars(s.log().devices[0].scalars, STEPS, RULE.scalars_per_step) for s in (here, there)]
    assert np.abs(np.array(scalars[0])).max() > 10 * SCALAR_TOLERANCE
    np.testing.assert_allclose(scalars[1], scalars[0], rtol=0, atol=SCALAR_TOLERANCE)
    np.testing.assert_allclose(there.losses, here.losses, rtol=0, atol=LOSS_TOLERANCE)
    # What was signed there is accepted here.
    book = KeyBook()
    book.add("pi", ec.derive_private_key(0x5EED, ec.SECP256R1()).public_key())
    accepted = Verifier(SERVER, "default", "server-1", book).check(
        "covey/v1/default/pi/report", bytes.fromhex(kept["sealed"])
    )
    assert isinstance(accepted, Accepted)
    assert accepted.body == there.chain
    difference = np.abs(np.array(scalars[0]) - np.array(scalars[1])).max()
    losses = max_difference(here, there)
    print(f"{place.cpu or 'here'}: scalars differ by at most {difference:.1e}, losses by {losses:.1e}")  # noqa: T201 shown by -s


def max_difference(here: Steps, there: Steps) -> float:
    return max(abs(a - b) for a, b in zip(here.losses, there.losses, strict=True))


def check_counts(report: Path) -> None:
    """Every golden test has run there, and none was skipped."""
    cases = ET.parse(report).getroot().findall(".//testcase")  # noqa: S314 pytest has written it
    assert not [case for case in cases if len(case.findall("skipped"))]
    seen = {str(case.get("name")).partition("[")[0] for case in cases}
    assert {*GUEST, *(name for names in GOLDEN.values() for name in names)} <= seen


@pytest.mark.parametrize("where", MATRIX)
def test_golden_values_and_a_full_step_on_arm(
    where: tuple[str, str],
    sites: dict[tuple[str, str], Path],
    tiny_bundle: Bundle,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    python, cpu = where
    try:
        root = debian_root(python)
        site = site_of(sites, python, "aarch64", tmp_path_factory)
        place = emulated(root, python, cpu, site, tmp_path)
    except NotHereError as error:
        pytest.skip(str(error))
    check_place(place, tiny_bundle, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("python", ["3.10"])
def test_golden_values_and_a_full_step_on_the_oldest_python(
    python: str,
    sites: dict[tuple[str, str], Path],
    tiny_bundle: Bundle,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """On this machine's processor: there is no arm64 interpreter of 3.10 in Debian, PyPI or npm."""
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    try:
        command = native_python(python)
    except NotHereError as error:
        pytest.skip(str(error))
    site = site_of(sites, python, "x86_64", tmp_path_factory)
    check_place(Place((command,), site, None), tiny_bundle, tmp_path)
