"""Intervals: of hand-made cases whose answer is known, and how often they hold the truth."""

import math

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from research.data.bins import Windows
from research.data.spec import Split, Tokens
from research.evaluate.intervals import draw_groups, estimate, measure_jackknife, measure_ratio, number_parts
from research.evaluate.measure import measure
from research.evaluate.samples import JoinedSplits, find_documents, group_samples
from research.losses import next_token
from research.metrics import Perplexity, RowMetric, confidence_interval


def test_a_mean_of_equal_parts_has_the_t_interval_of_its_values() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    result = estimate(4.0, measure_ratio(values, torch.ones(4, dtype=torch.float64), torch.arange(4)))
    mean, half = confidence_interval(values.tolist())
    assert result.value == mean
    assert result.half == pytest.approx(half, rel=1e-3)  # its table has three digits
    assert result.stderr == pytest.approx(math.sqrt(((values - 4) ** 2).sum().item() / 3 / 4))


def test_samples_of_one_document_count_once() -> None:
    """Four documents of three equal windows are four numbers, not twelve."""
    one = torch.tensor([1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    alone = estimate(4.0, measure_ratio(one, torch.ones_like(one), torch.arange(4)))
    parts = torch.arange(4).repeat_interleave(3)
    grouped = estimate(4.0, measure_ratio(one.repeat_interleave(3), torch.ones(12, dtype=torch.float64), parts))
    assert grouped.low == pytest.approx(alone.low)
    naive = estimate(4.0, measure_ratio(one.repeat_interleave(3), torch.ones(12, dtype=torch.float64), torch.arange(12)))
    assert naive.stderr < 0.6 * grouped.stderr


def test_a_paired_difference_is_that_of_the_differences() -> None:
    first, shift = torch.tensor([1.0, 5.0, 9.0, 3.0]).double(), torch.tensor([0.1, 0.2, 0.1, 0.2]).double()
    ones, parts = torch.ones(4).double(), torch.arange(4)
    paired = measure_ratio(first + shift, ones, parts) - measure_ratio(first, ones, parts)
    result = estimate(0.15, paired)
    assert result.stderr == pytest.approx(shift.std().item() / 2)
    assert result.low > 0  # though the values themselves differ by far more


@pytest.mark.parametrize(("values", "reason"), [([3.0], "one part"), ([], "none")])
def test_without_two_parts_there_is_no_interval(values: list[float], reason: str) -> None:
    assert math.isnan(estimate(3.0, torch.tensor(values)).half), reason
    assert math.isnan(estimate(math.nan, torch.tensor([1.0, 2.0])).half)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0, 3.0], dtype=torch.float64)
    left_out = [(values.sum() - value).item() / 4 for value in values]
    assert estimate(3.8, measure_jackknife(left_out)).stderr == pytest.approx(values.std().item() / math.sqrt(5))


def test_intervals_hold_the_truth_19_times_of_20() -> None:
    """Documents of several windows each, whose means vary: over windows alone half of the intervals would miss it."""
    random, hits, naive, rounds = torch.Generator().manual_seed(0), 0, 0, 400
    for _ in range(rounds):
        lengths = torch.randint(1, 9, (30,), generator=random)
        parts = torch.arange(30).repeat_interleave(lengths)
        means = torch.randn(30, generator=random).double()
        losses = means[parts] + 0.3 * torch.randn(len(parts), generator=random).double()
        ones = torch.ones(len(parts)).double()
        for by, count in ((parts, "hits"), (torch.arange(len(parts)), "naive")):
            result = estimate(losses.mean().item(), measure_ratio(losses, ones, by))
            inside = result.low <= 0 <= result.high
            hits, naive = (hits + inside, naive) if count == "hits" else (hits, naive + inside)
    assert 0.92 <= hits / rounds <= 0.98
    assert naive / rounds < 0.75


def make_stream(text: str, seq_len: int) -> Split:
    tokens = torch.tensor([ord(letter) % 32 for letter in text])  # "`" is 0, the end
    windows = tokens.unfold(0, seq_len + 1, seq_len)
    return Split(windows[:, :-1], windows[:, 1:])


def test_windows_are_of_the_document_in_which_they_begin() -> None:
    stream = make_stream("abcdefgh`ijklm`nopqrstuvwx", 5)  # documents of 8, 5 and 11 letters
    assert find_documents(stream, end=0).tolist() == [0, 0, 1, 2, 2]
    apart = Split(stream.inputs[[0, 2, 4]], stream.targets[[0, 2, 4]])  # none goes on with the one before
    assert find_documents(apart, end=0).tolist() == [0, 1, 2]


def test_windows_of_a_long_text_are_grouped_in_blocks() -> None:
    stream = make_stream("abcdefghij" * 100, 5)
    parts, unit = group_samples(stream, Tokens(32, 5, 0))
    assert (unit, len(parts.unique()), len(parts)) == ("block", 20, 199)
    assert (parts.diff() >= 0).all()
    documents = torch.arange(199) // 10
    chosen = Windows(stream.inputs, stream.targets, None, documents)
    known, unit = group_samples(chosen, Tokens(32, 5, 0))
    assert (unit, known.tolist()) == ("document", documents.tolist())
    joined, unit = group_samples(JoinedSplits([chosen, chosen.take(20)]), Tokens(32, 5, 0))
    assert (unit, int(joined.max())) == ("document", 21)


@pytest.mark.parametrize("shape", [Tokens(32, 5, 0, num_classes=3), Tokens(32, 5)])
def test_rows_stand_alone(shape: Tokens) -> None:
    rows = Split(torch.randint(1, 32, (40, 5)), torch.zeros(40, dtype=torch.long))
    assert group_samples(rows, shape)[1] == "sample"


def test_groups_of_the_jackknife_are_of_whole_parts_in_equal_numbers() -> None:
    parts = number_parts(torch.arange(100).repeat_interleave(3))[0]
    groups = draw_groups(parts)
    assert groups.view(100, 3).eq(groups.view(100, 3)[:, :1]).all()
    assert groups.bincount().tolist() == [15] * 20


class Table(nn.Module):
    """Logits by the token that was seen."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 7)

    def forward(self, tokens: Tensor) -> Float[Tensor, "batch seq vocab"]:
        return self.table(tokens)  # type: ignore[no-any-return]


class Sure(RowMetric):
    """The mean of the largest logit."""

    def measure(self, logits: Tensor, targets: Tensor) -> Float[Tensor, "n"]:
        return logits.amax(-1).flatten()

    def compute(self, rows: Float[Tensor, "n"]) -> float:
        return float(rows.mean())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_metrics_have_intervals_whatever_the_batches(batch_size: int) -> None:
    """By the jackknife, beside what a direct formula gives: e to the loss moves by itself times the loss."""
    torch.manual_seed(0)
    split, model = Split(torch.randint(7, (60, 4)), torch.randint(7, (60, 4))), Table()
    metrics = {"perplexity": Perplexity(False), "sure": Sure(None)}
    measured = measure(model, split, next_token, metrics, torch.arange(60), batch_size, torch.no_grad, lambda: None)
    results = {name: estimate(value, measured.influences.get(name)) for name, value in measured.values.items()}
    loss, perplexity = results["val/loss"], results["val/perplexity"]
    assert perplexity.value == pytest.approx(math.exp(loss.value))
    assert perplexity.stderr == pytest.approx(perplexity.value * loss.stderr, rel=0.35)  # of 20 groups
    assert perplexity.stderr == pytest.approx(0.64494, abs=2e-5)  # the groups are those of a fixed seed
    assert math.isnan(results["val/sure"].half)  # it says not which way is better
    assert (measured.num_targets, measured.num_bytes) == (240, 240)
