"""Pauses after connections that break soon: two programs of one name do not spin, and a lasting connection is quick."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.network.quick_losses import LONGEST_PAUSE_S, SHORT_PAUSE_S, SOON_S, QuickLosses


def twins(seconds: float, seed: int) -> list[float]:
    """Let two programs of one name throw each other out; return when each takeover happened."""
    rng = random.Random(seed)
    losses = [QuickLosses(rng), QuickLosses(rng)]
    inside, since, takeovers = 0, 0.0, []
    back_at = [0.0, 0.1]  # when the one that is outside logs in
    while (now := back_at[1 - inside]) < seconds:
        takeovers.append(now)
        back_at[inside] = now + losses[inside].lost(now - since)
        inside, since = 1 - inside, now
    return takeovers


@given(seed=st.integers(0, 2**32))
def test_twins_slow_down_and_stay_slow(seed: int) -> None:
    """Before, the two threw each other out 52 times in 100 s."""
    takeovers = twins(3600, seed)
    assert sum(at < 100 for at in takeovers) <= 14
    late = [at for at in takeovers if at > 1200]
    assert len(late) <= 2 * 2400 / LONGEST_PAUSE_S
    assert late[-1] > 3600 - 3 * LONGEST_PAUSE_S  # neither has given up


@given(ups=st.lists(st.floats(0, 1e5), max_size=40), seed=st.integers(0, 9))
def test_pauses_are_bounded_and_a_lasting_connection_ends_the_row(ups: list[float], seed: int) -> None:
    losses = QuickLosses(random.Random(seed))
    for up_s in ups:
        assert SHORT_PAUSE_S <= losses.lost(up_s) <= 1.5 * LONGEST_PAUSE_S
    assert losses.lost(1e6) == SHORT_PAUSE_S
    assert losses.count == 1


def test_the_first_pauses() -> None:
    class Least(random.Random):
        def random(self) -> float:
            return 0.0

    losses = QuickLosses(Least())
    assert [losses.lost(1.0) for _ in range(6)] == [1, 1, 5, 10, 15, 20]
    assert losses.lost(SOON_S + 1.0) == 25  # the twin's pause is long by now
