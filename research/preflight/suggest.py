"""Did you mean: the names that a mistyped word may stand for."""

from difflib import SequenceMatcher
from itertools import takewhile


def count_common_prefix(a: str, b: str) -> int:
    """Return the number of leading letters that two words share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def count_changed_letters(a: str, b: str) -> int:
    """Return the letters between the common start and the common end: 1 for a typing slip, 2 for two letters swapped."""
    start = count_common_prefix(a, b)
    return max(len(a), len(b)) - start - count_common_prefix(a[start:][::-1], b[start:][::-1])


def suggest(word: str, names: list[str]) -> list[str]:
    """Return at most three names that `word` may stand for, best first. A key may be typed by its last part alone."""
    ranked = []
    tail = word.rpartition(".")[2]
    for name in names:
        slip, tail_slip = count_changed_letters(word, name), count_changed_letters(tail, name.rpartition(".")[2])
        similarity = SequenceMatcher(None, word, name).ratio()
        ranks = (
            slip <= 1 < max(len(word), len(name)),
            tail_slip == 0,
            slip == 2 or tail_slip == 1 < len(tail),
            similarity > 0.7,
        )
        if True in ranks:
            ranked.append((ranks.index(True), -similarity, name))
    return [name for rank, _, name in sorted(ranked)[:3] if rank <= max(1, min(ranked)[0])]
