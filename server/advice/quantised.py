"""What a quantised base costs a job, from what the export has measured and written into the manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_runtime.bundle.base import LEAST_COSINE

if TYPE_CHECKING:
    from edge_runtime.bundle.manifest import Manifest


def lacks_of_base(manifest: Manifest, eps: float | None) -> list[str]:
    """Return what a job on a quantised base will not give, a half sentence each; nothing for a float32 base.

    Args:
        manifest: the bundle's.
        eps: the job's scale of a perturbation; None: the board backpropagates.
    """
    base = manifest.base
    if base is None:
        return []
    rows = "golden rows of random tokens" if base.rows == "golden" else "the rows that the export was given"
    lacks = [f"its base is {base.kind}: {base.loss_ratio:.3f} times the loss of the float32 base on {rows}"]
    if eps is not None and base.scalar_cosine < LEAST_COSINE and (base.least_eps is None or eps < base.least_eps):
        advice = f"export with {base.nearer}" if base.least_eps is None else f"set eps = {base.least_eps:g} in [step]"
        lacks.append(f"its scalars have a cosine of {base.scalar_cosine:.2f} to those of the float32 base: {advice}")
    return lacks
