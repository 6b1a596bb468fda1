"""The benchmark of several connections for reports, small: through a slow link they let more through than one."""

from __future__ import annotations

import pytest

from benchmarks.speed.report_connections import measure


@pytest.mark.timeout(300)
def test_a_broker_that_is_far_away_hands_more_to_three_connections_than_to_one() -> None:
    """At most 100 messages are under way on a connection: 600 take 5 round trips of 200 ms at least over one."""
    one, three = measure([1, 3], 600, 0.1)
    assert one["reports_per_s"] <= 600 / 0.8
    assert three["over_first"] > 1.3
    assert three["cpu_ms"] > 0
