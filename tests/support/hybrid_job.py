"""A job that ends on the same bits whatever is killed, cut or restarted.

One device trains at full depth, one at a lower level, one with forward passes, and all take part in every round.
"""

from __future__ import annotations

from typing import Any

NAMES = ("a", "b", "c")
FIELDS: dict[str, Any] = {
    "min_devices": 3,
    "min_reports": 3,
    "max_attempts": 1000,
    "deadline_s": 60.0,
    "steps": 4,
    "stld": {"steps": 4, "batch_size": 4, "personal_share": 0.34, "device_levels": {"b": 2, "c": 0}},
}
