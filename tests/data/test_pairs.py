"""Pairs of texts: source, separator, target and end in one row, of which the target alone is learnt."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from research.data.pairs import pairs, spell_ordinal, spell_year
from research.data.spec import MemoryDataset, Split, Tokens
from research.data.tokenizers import BPE, Bytes
from research.losses import IGNORE

ROWS = [(f"source {number}", f"target {number * 7}") for number in range(30)]


def write_rows(path: Path, rows: list[tuple[str, str]] = ROWS) -> str:
    path.write_text("".join(json.dumps({"source": source, "target": target}) + "\n" for source, target in rows))
    return str(path)


def read_split(data: MemoryDataset[Tokens], split: Split) -> set[tuple[str, str]]:
    """Return the source with its separator, and the targets that count."""
    assert data.tokenizer is not None
    end, found = data.tokenizer.end, set()
    for x, y in zip(split.inputs.tolist(), split.targets.tolist(), strict=True):
        counted = [index for index, token in enumerate(y) if token != IGNORE]
        assert counted == list(range(counted[0], counted[-1] + 1)), "the target is one run"
        assert y[counted[-1]] == end
        assert x[counted[0] + 1 : counted[-1] + 1] == y[counted[0] : counted[-1]], "targets are the next tokens"
        assert x[counted[-1] + 1 :] == [end] * (len(x) - counted[-1] - 1), "filled up with ends"
        source = data.tokenizer.decode(x[: counted[0] + 1]).decode()
        found.add((source, data.tokenizer.decode(y[counted[0] : counted[-1]]).decode()))
    return found


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(290)], ids=["bytes", "bpe"])
def test_the_target_alone_counts(tmp_path: Path, tokenizer: Bytes | BPE) -> None:
    data = pairs(write_rows(tmp_path / "a.jsonl"), tokenizer=tokenizer, seq_len=40, test_fraction=0.1)
    assert isinstance(data.test, Split)
    parts = [read_split(data, split) for split in (data.train, data.val, data.test)]
    assert set.union(*parts) == {(f"{source} => ", target) for source, target in ROWS}
    assert [len(part) for part in parts] == [24, 3, 3]
    assert data.shape == Tokens(tokenizer.vocab_size, 40, tokenizer.end)
    count = sum(len(tokenizer.encode([target.encode()])[0]) + 1 for _, target in ROWS)
    assert sum(int((split.targets != IGNORE).sum()) for split in (data.train, data.val, data.test)) == count


def test_the_sizes_of_rows_are_exact(tmp_path: Path) -> None:
    """A row holds what is read and the last target beyond: 8 + 4 + 8 tokens fit into 19, not into 18."""
    path = write_rows(tmp_path / "a.jsonl", [(f"source {n}", f"target{n}") for n in range(8)])
    assert len(pairs(path, seq_len=8 + 4 + 7).train) == 7
    with pytest.raises(
        ValueError, match=r"(?s)data.seq_len=18: 8 pairs of more than 19 tokens\n.*'source .' \(20\).*data.too_long=skip"
    ):
        pairs(path, seq_len=18)


def test_longer_pairs_are_left_out_and_counted(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*ROWS, ("long" * 30, "x"), ("y", "long" * 30)])
    data = pairs(path, seq_len=40, too_long="skip")
    assert len(data.train) + len(data.val) == 30
    assert data.notes == ("left out: 2 pairs of more than 41 tokens",)


def test_a_source_with_several_targets_is_in_one_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [(f"s{number % 6}", f"t{number}") for number in range(30)] + [("s0", "t0")])
    data = pairs(path, seq_len=16, val_fraction=0.4)
    train, val = ({source for source, _ in read_split(data, split)} for split in (data.train, data.val))
    assert not train & val
    assert data.notes == ("6 sources have several targets", "left out: 1 repeated")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("source,other\na,b\n", "data.target=target: .* one of source, other"),
        ("source,target\na,\n", "1 rows with an empty 'target'"),
        ("source,target\na => b,c\n", "1 sources with the separator ' => ' in them"),
        ("source,target\na,b\n", "1 different texts cannot be split in two"),
        ("source,target\n", "0 different texts cannot be split"),
    ],
)
def test_what_is_no_pair_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(ValueError, match=f"(?s){words}"):
        pairs(str(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"encoding": "latin-1"},
            "encoding=latin-1 is of files, and needs data.path\ngive data.path too, or data.encoding=utf-8",
        ),
        ({"pattern": "*.csv"}, "pattern=*.csv is of files, and needs data.path\ngive data.path too, or data.pattern=null"),
        ({"source": "question"}, "source=question is of files"),
        ({"path": "a.jsonl", "split_seed": 1}, "split_seed=1 is of dates that are made, and needs data.path=null"),
        ({"path": "a.jsonl", "num_dates": 50}, "num_dates=50 is of dates that are made, and needs data.path=null"),
    ],
)
def test_settings_without_an_effect_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    path = {"path": write_rows(tmp_path / "a.jsonl")} if "path" in settings else {}
    with pytest.raises(ValueError, match=re.escape(f"data.{words}")):
        pairs(**settings | path)


def test_rows_that_are_all_left_out_are_told(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    with pytest.raises(
        ValueError, match=r"(?s)no row is left: 30 rows without data.target=answer\n.*a.jsonl:1.*\nname the columns or keys"
    ):
        pairs(path, target="answer", defects="skip")


def test_files_that_are_no_tables_are_counted(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl")
    (tmp_path / "README.md").write_text("what is here")
    assert pairs(str(tmp_path)).notes == ("left out: 1 files that are no tables",)


def test_dates_are_made_from_a_seed() -> None:
    data, same, other = pairs(num_dates=50), pairs(num_dates=50), pairs(num_dates=50, split_seed=1)
    assert data.digest == same.digest != other.digest
    rows = read_split(data, data.train) | read_split(data, data.val)
    assert len(rows) == 50
    for source, target in rows:
        year, month, day = map(int, target.split("-"))
        assert source.endswith(" => ")
        assert all(word in source for word in (spell_year(year), spell_ordinal(day)))
        assert 1 <= month <= 12
    assert torch.equal(data.val.targets, same.val.targets)


@pytest.mark.parametrize(
    ("number", "words"), [(1, "first"), (12, "twelfth"), (20, "twentieth"), (23, "twenty-third"), (30, "thirtieth")]
)
def test_ordinals(number: int, words: str) -> None:
    assert spell_ordinal(number) == words


def test_years() -> None:
    words = ["nineteen hundred", "nineteen oh five", "two thousand", "twenty twenty-one"]
    assert [spell_year(year) for year in (1900, 1905, 2000, 2021)] == words
