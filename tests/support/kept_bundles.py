"""Names of tiny bundles that were exported beforehand, for environments without the exporter."""

from __future__ import annotations

import hashlib
from typing import Any


def kept_name(kind: str, options: dict[str, Any]) -> str:
    """Return the folder's name of a bundle: one for each kind and set of options."""
    return f"{kind}-{hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:12]}"
