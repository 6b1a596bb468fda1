"""Which message is given up: the one at the head of the queue each time that the broker closes the connection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.network.stuck_message import PATIENCE, StuckMessage


def play(queue: list[int], bad: set[int], lost_acks: list[int], connections: int) -> tuple[list[int], list[int]]:
    """Let a broker take messages until a bad one comes; return what it took, and what was given up.

    ``lost_acks``: how many acknowledgements each connection loses, when it sends all at once.
    """
    stuck, taken, given_up = StuckMessage(), [], []
    for connection in range(connections):
        good = next((at for at, number in enumerate(queue) if number in bad), len(queue))
        lost = 0 if stuck.is_one_by_one else lost_acks[connection % len(lost_acks)]
        acknowledged = queue[: max(0, good - lost)] if good < len(queue) else queue
        taken += acknowledged
        queue = queue[len(acknowledged) :]
        if not queue:
            break
        if stuck.lost(queue[0], is_closed_soon=True):
            given_up.append(queue.pop(0))
    return taken, given_up


@given(
    count=st.integers(1, 12),
    bad=st.sets(st.integers(0, 11), max_size=4),
    lost_acks=st.lists(st.integers(0, 5), min_size=1, max_size=4),
)
def test_exactly_the_bad_messages_are_given_up_and_all_others_arrive(
    count: int, bad: set[int], lost_acks: list[int]
) -> None:
    taken, given_up = play(list(range(count)), bad, lost_acks, 100)
    assert given_up == sorted(bad & set(range(count)))
    assert taken == [number for number in range(count) if number not in bad]


def test_it_takes_three_connections_and_other_losses_do_not_count() -> None:
    stuck = StuckMessage()
    assert [stuck.lost(7, is_closed_soon=True) for _ in range(PATIENCE)] == [False] * (PATIENCE - 1) + [True]
    for is_closed_soon, head in ((False, 7), (True, None), (True, 8)):
        stuck = StuckMessage()
        assert not any(stuck.lost(7, is_closed_soon=True) for _ in range(PATIENCE - 1))
        assert not stuck.lost(head, is_closed_soon=is_closed_soon)
        assert not stuck.lost(7, is_closed_soon=True)
