"""Of a step's scalars only the largest count: the others are as if they had not been measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.forward_only.coefficients import step_coefficients
from edge_runtime.protocol.step_rule import StepRule


def test_the_best_by_hand() -> None:
    """P1 = 1, P2 = 4, g = (1, −3, 0.5, 2), two count: the front moves by (−3 + 2)/2, the back by −3/2 and 2/2."""
    rule = StepRule(back_perturbations=4, keep_directions=2, normalize="none", learning_rate=0.5)
    coefficients, _ = step_coefficients([1.0, -3.0, 0.5, 2.0], rule, None)
    assert coefficients.front == (0.25,)
    assert coefficients.back == (0.0, 0.75, 0.0, -0.5)


def test_of_equal_scalars_the_first_counts_and_whole_network_directions_go_with_theirs() -> None:
    """P2 = 1: a direction perturbs the whole network, so front and back are kept or left together."""
    rule = StepRule(front_perturbations=3, back_perturbations=1, keep_directions=1, normalize="none", learning_rate=1.0)
    coefficients, _ = step_coefficients([-2.0, 2.0, 1.0], rule, None)
    assert coefficients.front == (2.0, 0.0, 0.0)
    assert coefficients.back == (2.0, 0.0, 0.0)


@given(
    scalars=st.lists(st.floats(-100, 100), min_size=4, max_size=4), normalize=st.sampled_from(["none", "rms", "std"])
)
def test_keeping_all_changes_no_bit(scalars: list[float], normalize: str) -> None:
    plain = StepRule(back_perturbations=4, normalize=normalize)
    every = StepRule(back_perturbations=4, normalize=normalize, keep_directions=4)
    assert step_coefficients(scalars, every, 2.0) == step_coefficients(scalars, plain, 2.0)


def test_the_normalisation_sees_all_scalars() -> None:
    """Else the mean square of the kept ones, which are large because they were chosen, would shrink the step."""
    rule = StepRule(back_perturbations=2, keep_directions=1)
    _, mean_square = step_coefficients([3.0, 1.0], rule, None)
    assert mean_square == pytest.approx(5.0)
