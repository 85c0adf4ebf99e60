"""The order of samples and the seeds are pure functions."""

from collections import Counter
from resource import RUSAGE_SELF, getrusage
from statistics import median
from time import process_time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from research.seeding import fold_in, permutation, permute, sample_indices, seed_step

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


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1))
def test_a_permutation_without_a_table_holds_each_number_once(n: int, key: int) -> None:
    assert torch.equal(permute(torch.arange(n), n, key).sort().values, torch.arange(n))


def test_a_permutation_without_a_table_is_as_random_as_one_with_a_table() -> None:
    """Over 200 keys a permutation has one fixed point on average; half of its neighbours ascend; all orders of 4 occur."""
    n = 5000
    orders = [permute(torch.arange(n), n, key) for key in range(200)]
    assert sum(int((order == torch.arange(n)).sum()) for order in orders) / 200 == pytest.approx(1, abs=4 / 200**0.5)
    assert sum(float((order.diff() > 0).double().mean()) for order in orders) / 200 == pytest.approx(0.5, abs=0.002)
    counts = Counter(tuple(permute(torch.arange(4), 4, key).tolist()) for key in range(1200))
    assert len(counts) == 24
    assert min(counts.values()) > 25


def test_the_order_of_a_billion_samples_needs_no_table() -> None:
    n, before = 10**9, getrusage(RUSAGE_SELF).ru_maxrss
    stream = sample_indices(7, n - 300, 600, n)  # the end of an epoch and the start of the next
    assert torch.equal(stream, torch.cat([sample_indices(7, n - 300 + start, 100, n) for start in range(0, 600, 100)]))
    assert len(stream.unique()) == 600
    assert 0 <= stream.min() < stream.max() < n
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 10_000  # kB
    seconds = []
    for batch in range(50):
        start = process_time()
        sample_indices(7, batch * 512, 512, n)
        seconds.append(process_time() - start)
    assert median(seconds) < 1e-3


def test_up_to_a_million_samples_the_order_is_the_table() -> None:
    assert torch.equal(sample_indices(3, 0, 50, 10**6), permutation(3, 0, 10**6)[:50])
