"""The order of samples and the seeds are pure functions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from research.seeding import fold_in, permutation, sample_indices, seed_step

small = st.integers(0, 200)


@given(seed=small, epoch=small, n=st.integers(1, 100))
def test_an_epoch_holds_each_sample_once(seed: int, epoch: int, n: int) -> None:
    assert sorted(permutation(seed, epoch, n).tolist()) == list(range(n))


@given(seed=small, start=small, a=st.integers(1, 60), b=st.integers(1, 60), n=st.integers(1, 50))
def test_a_stream_does_not_depend_on_how_it_is_cut(seed: int, start: int, a: int, b: int, n: int) -> None:
    whole = sample_indices(seed, start, a + b, n)
    parts = torch.cat((sample_indices(seed, start, a, n), sample_indices(seed, start + a, b, n)))
    assert torch.equal(whole, parts)


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_near_keys_give_other_seeds(keys: list[int]) -> None:
    assert 0 <= fold_in(*keys) < 2**63
    assert fold_in(*keys) != fold_in(*keys[:-1], keys[-1] + 1)


def test_a_step_draws_the_same_whatever_came_before() -> None:
    seed_step(3, 7)
    first = torch.rand(5)
    torch.rand(99)
    seed_step(3, 7)
    assert torch.equal(first, torch.rand(5))
    seed_step(3, 8)
    assert not torch.equal(first, torch.rand(5))
