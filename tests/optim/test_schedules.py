"""Schedules against the values of their formulas."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.optim.schedules import bitnet, constant, cosine, wsd


@given(step=st.integers(0, 999), warmup=st.integers(0, 50))
def test_schedules_stay_in_range_and_end_low(step: int, warmup: int) -> None:
    for schedule in (constant, cosine, wsd):
        assert 0 <= schedule(step, 1000, warmup) <= 1
    assert cosine(999, 1000, warmup, 0.1) == pytest.approx(0.1)
    assert wsd(999, 1000, warmup) == pytest.approx(0, abs=0.01)
    assert wsd(step, 1000, 0, decay=0.0) == 1
    assert constant(0, 1000, 10) == pytest.approx(0.1)


def test_schedules_have_the_values_of_their_formulas() -> None:
    assert [wsd(step, 10, 2, decay=0.5) for step in range(10)] == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert [cosine(step, 5, 0, floor=0.0) for step in range(5)] == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    assert [constant(step, 5, 2) for step in range(3)] == pytest.approx([0.5, 1, 1])
    lrs, decays = zip(*(bitnet(step, 9, 0, middle=0.5, cooldown=0.4) for step in range(9)), strict=True)
    assert lrs == pytest.approx([1, 0.961940, 0.853553, 0.691342, 0.4, 0.341421, 0.2, 0.058579, 0], abs=1e-6)
    assert decays == (*lrs[:4], 0, 0, 0, 0, 0), "a cosine in the first stage, none in the second"
    assert bitnet(0, 9, 4)[0] == pytest.approx(0.25)
    assert bitnet(0, 9, 4)[1] == 1, "the warm-up applies to the lr only"


@given(middle=st.floats(0.01, 0.99), cooldown=st.floats(0.01, 0.99), steps=st.integers(2, 200))
def test_the_second_stage_never_raises_the_rate(middle: float, cooldown: float, steps: int) -> None:
    lrs = [bitnet(step, steps, 0, middle, cooldown)[0] for step in range(steps)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(lrs))
    assert lrs[0] == 1
    assert lrs[-1] == pytest.approx(0, abs=1e-12)
