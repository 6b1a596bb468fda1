"""covey advise on a quantised base: what the export has measured is said, and a too small eps is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from server.advice.quantised import lacks_of_base

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_runtime.bundle.folder import Bundle


def test_a_float32_base_lacks_nothing(tiny_bundle: Bundle) -> None:
    assert lacks_of_base(tiny_bundle.manifest, 0.01) == []


@pytest.mark.parametrize(
    ("cosine", "least_eps", "eps", "said"),
    [
        (0.99, 0.01, 0.01, None),
        (0.90, 0.03, 0.01, "set eps = 0.03 in [step]"),
        (0.90, 0.03, 0.05, None),
        (0.90, 0.03, None, None),
        (0.90, None, 0.05, "export with --base int8"),
    ],
)
def test_a_low_cosine_matters_to_steps_with_a_small_eps(
    tiny_export: Callable[..., Bundle], cosine: float, least_eps: float | None, eps: float | None, said: str | None
) -> None:
    manifest = tiny_export("bert", base="int4", levels=(1, 3)).manifest
    assert manifest.base is not None
    base = msgspec.structs.replace(
        manifest.base, scalar_cosine=cosine, least_eps=least_eps, loss=1.02, loss_float32=1.0
    )
    first, *more = lacks_of_base(msgspec.structs.replace(manifest, base=base), eps)
    assert "1.020 times the loss of the float32 base on golden rows" in first
    assert [said in line for line in more] == [True] * bool(said) if said else more == []
