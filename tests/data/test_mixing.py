"""Several sources by weights: exact shares; each sample is a function of seed and number, for any processes and resumes."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from research.data import text as text_module
from research.data.mixing import BLOCK, Mixture, draw_samples, share_block
from research.data.spec import Split
from research.data.text import text
from research.data.tokenizers import BPE

SIZES, QUOTAS = (10, 700, 3000), (512, 409, 103)


def make_mixture() -> Mixture:
    """Three sources; a sample is the number of its source and its own number."""
    sources = [
        Split(torch.stack((torch.full((size,), number), torch.arange(size)), dim=1), torch.zeros(size, 2, dtype=torch.long))
        for number, size in enumerate(SIZES)
    ]
    return Mixture(sources, QUOTAS)


def draw(seed: int, start: int, count: int) -> list[tuple[int, int]]:
    mixture = make_mixture()
    return [(int(a), int(b)) for a, b in mixture[mixture.draw(seed, start, count)][0].tolist()]


def test_each_block_has_exact_shares_and_each_source_is_read_through_before_it_comes_again() -> None:
    samples = draw(7, 0, 8 * BLOCK)
    for block in range(8):
        counts = Counter(source for source, _ in samples[block * BLOCK : (block + 1) * BLOCK])
        assert tuple(counts[number] for number in range(3)) == QUOTAS
    for number, size in enumerate(SIZES):
        times = Counter(sample for source, sample in samples if source == number)
        drawn = 8 * QUOTAS[number]
        assert set(times.values()) <= {drawn // size, drawn // size + 1}, "no sample comes twice more than another"
        assert len(times) == min(size, drawn)


def test_a_sample_depends_on_seed_and_number_alone() -> None:
    samples = draw(3, 0, 3000)
    for start, count in ((0, 1), (1020, 9), (1024, 1024), (2047, 2), (2999, 1)):
        assert draw(3, start, count) == samples[start : start + count]
    assert draw(4, 0, 3000) != samples
    first = [source for source, _ in samples[:BLOCK]]
    assert first != sorted(first)
    assert first != [source for source, _ in samples[BLOCK : 2 * BLOCK]], "each block has a pattern of its own"


def test_the_same_for_one_process_and_for_two_and_for_any_micro_batches() -> None:
    batch = draw_samples(make_mixture(), 0, 5 * 96, 96)
    halves = [part for rank in range(2) for part in batch.tensor_split(4)[rank::2]]
    assert sorted(torch.cat(halves).tolist()) == sorted(batch.tolist())
    assert torch.equal(batch, torch.cat([draw_samples(make_mixture(), 0, 5 * 96 + part, 32) for part in (0, 32, 64)]))


def test_other_samples_are_drawn_as_they_were() -> None:
    split = Split(torch.arange(50), torch.zeros(50, dtype=torch.long))
    assert sorted(draw_samples(split, 0, 0, 50).tolist()) == list(range(50))


def test_a_mixture_is_read_like_one_split() -> None:
    mixture = make_mixture()
    index = torch.tensor([709, 0, 3709, 9, 10])
    assert mixture[index][0].tolist() == [[1, 699], [0, 0], [2, 2999], [0, 9], [1, 0]]
    assert len(mixture) == 3710
    assert mixture.take(None) is mixture
    assert len(mixture.take(5)) == 5
    assert mixture.describe(["a", "b", "c"]) == "an epoch reads a 185.50 times, b 2.12 times, c 0.12 times"


@pytest.mark.parametrize(
    ("weights", "quotas"), [([1, 1], (512, 512)), ([0.7, 0.3], (717, 307)), ([1, 1, 1], (342, 341, 341)), ([999, 1], (1023, 1))]
)
def test_shares_are_the_nearest_whole_numbers(weights: list[float], quotas: tuple[int, ...]) -> None:
    assert share_block(weights) == quotas


def write_sources(folder: Path) -> list[str]:
    """Two sources of 12 documents and of one, which have a document in common."""
    for number in range(12):
        (folder / "many").mkdir(exist_ok=True)
        (folder / "many" / f"{number}.txt").write_text(f"many {number} " * 60)
    (folder / "one.txt").write_text("".join(f"one line number {number}\n" for number in range(400)))
    (folder / "again").mkdir()
    (folder / "again" / "a.txt").write_text("many 3 " * 60)
    (folder / "again" / "b.txt").write_text("again " * 99)
    (folder / "again" / "c.txt").write_text("and again " * 99)
    return [str(folder / name) for name in ("many", "one.txt", "again")]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "CACHE", tmp_path / "cache")


@pytest.mark.parametrize("tokenizer", [None, BPE(280)], ids=["bytes", "bpe"])
def test_text_is_mixed_by_weights(tmp_path: Path, tokenizer: BPE | None) -> None:
    paths = write_sources(tmp_path)
    data = text(paths, weights=[0.5, 0.25, 0.25], seq_len=16, tokenizer=tokenizer)
    assert isinstance(data.train, Mixture)
    assert data.train.quotas == (512, 256, 256)
    assert data.tokenizer is not None
    starts = Counter(data.tokenizer.decode(x).decode().split()[0] for x in data.train[data.train.draw(0, 0, BLOCK)][0].tolist())
    assert starts.total() == BLOCK
    assert data.source.startswith("11 + 1 + 1 + 3 documents"), "each source has its own split, a single document is cut"
    assert data.notes[0].startswith(f"an epoch reads {paths[0]} 1.")
    assert data.notes[-1] == "left out: 1 repeated"
    other = text(paths, weights=[0.25, 0.5, 0.25], seq_len=16, tokenizer=tokenizer)
    assert other.digest != data.digest


def test_without_weights_nothing_moves(tmp_path: Path) -> None:
    paths = write_sources(tmp_path)
    data = text(paths, seq_len=16)
    assert isinstance(data.train, Split)
    assert data.source.startswith("13 + 2 documents")


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([1.0, 1.0], "are 2 weights, data.path=.* is no list of as many paths"),
        ([1.0, -1.0, 1.0], r"data.weights takes a list of numbers in \(0, inf\) or null; got \[1.0, -1.0, 1.0\]"),
        ([1.0, 1e-5, 1.0], "1e-05 is less than one of 1,024 samples"),
        ([1.0, float("nan"), 1.0], "data.weights takes"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, weights: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        text(write_sources(tmp_path), weights=weights, seq_len=16)


def test_a_path_within_another_is_refused(tmp_path: Path) -> None:
    paths = write_sources(tmp_path)
    with pytest.raises(ValueError, match=r"all files of .*many are in a path before it"):
        text([str(tmp_path), paths[0]], weights=[1.0, 1.0], seq_len=16)
