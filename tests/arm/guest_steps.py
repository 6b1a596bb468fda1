"""Run by test_arm_golden.py on the emulated board, whose Python has only what a card carries, and pytest.

COVEY_GUEST_BUNDLE is a bundle; COVEY_GUEST_STEPS holds what another machine has measured on it; what is measured here
is written to COVEY_GUEST_OUT.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from step_case import Steps, replayed_sha256, take_steps, workspaces_sha256

import edge_runtime
from edge_runtime.bundle.folder import Bundle, open_bundle
from edge_runtime.engines.golden import check_golden
from edge_runtime.perturbation.kernel import kernel, kernel_name
from edge_runtime.signing.signer import Signer

OUT = Path(os.environ["COVEY_GUEST_OUT"])


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(Path(os.environ["COVEY_GUEST_BUNDLE"]))


@pytest.fixture(scope="module")
def others() -> Steps:
    kept = json.loads(Path(os.environ["COVEY_GUEST_STEPS"]).read_text())
    return Steps(bytes.fromhex(kept["chain"]), kept["losses"])


def test_it_is_the_card_s_covey_with_its_compiled_kernel() -> None:
    assert Path(edge_runtime.__file__).is_relative_to(os.environ["COVEY_GUEST_SITE"])
    assert kernel_name() == "native"


@pytest.mark.parametrize("name", ["native", "numpy"])
def test_another_machine_s_log_gives_its_bits(
    bundle: Bundle, others: Steps, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVEY_KERNEL", name)
    kernel.cache_clear()
    try:
        assert kernel_name() == name
        assert replayed_sha256(bundle, others) == others.log().result_sha256
    finally:
        kernel.cache_clear()


def test_the_bundle_s_golden_vectors_hold(bundle: Bundle) -> None:
    parity = check_golden(bundle)
    assert 0 <= parity.loss <= bundle.manifest.golden.tolerance


def test_a_round_is_trained_and_said_and_signed(bundle: Bundle, others: Steps) -> None:
    steps = take_steps(bundle)
    assert replayed_sha256(bundle, steps) == steps.log().result_sha256
    assert np.isfinite(steps.losses).all()
    signer = Signer("pi", "default", "boot-1", ec.derive_private_key(0x5EED, ec.SECP256R1()), lambda: 7)
    said = {
        "chain": steps.chain.hex(),
        "losses": steps.losses,
        "workspaces": workspaces_sha256(bundle),
        "sealed": signer.seal("covey/v1/default/pi/report", steps.chain, "server-1").hex(),
    }
    OUT.write_text(json.dumps(said))
