"""Token streams on the disk: the same samples as in memory, made once, continued after a kill, never half there."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from program import run

from research.data import bins, streams
from research.data import text as text_module
from research.data.bins import Bins
from research.data.spec import Dataset, Split, Tokens
from research.data.text import text
from research.data.tokenizers import BPE, Bytes, Tokenizer
from research.files import quality

TEXT = "the packed ternary layers of a network learn to read a text of words and lines"
WORDS = TEXT.split()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setattr(text_module, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Thirty documents of ten to forty lines."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for index in range(30):
        lines = [" ".join(numbers.choice(WORDS, 9)) for _ in range(numbers.integers(10, 40))]
        (folder / f"{index}.txt").write_text("\n".join([f"document {index} é", *lines]))
    return folder


@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(300)], ids=["bytes", "bpe"])
def test_windows_read_from_the_disk_are_those_in_memory(
    corpus: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = text(str(corpus), seq_len=32, tokenizer=tokenizer, test_fraction=0.2)
    monkeypatch.setattr(bins, "IN_MEMORY", 0)
    large = text(str(corpus), seq_len=32, tokenizer=tokenizer, test_fraction=0.2)
    assert isinstance(small.train, Split)
    assert isinstance(large.train, Bins)
    assert small.digest == large.digest
    assert small.baseline == large.baseline
    for name in ("train", "val", "test"):
        one, other = getattr(small, name), getattr(large, name)
        index = torch.arange(len(one)).flip(0)
        assert len(one) == len(other) > 3
        assert all(map(torch.equal, one[index], other[index]))
        assert one.target_shape == other.target_shape == (32,)
        assert one.count_targets(index) == other.count_targets(index) == 32 * len(index)
        assert all(map(torch.equal, one.take(3)[index[-3:]], other.take(3)[index[-3:]]))
        assert len(one.take(3)) == len(other.take(3)) == 3


def test_a_stream_that_was_cut_is_named(corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bins, "IN_MEMORY", 0)
    data = text(str(corpus), seq_len=32)
    file = next(cache.glob("*/train.bin"))
    with file.open("r+b") as stream:
        stream.truncate(40)
    with pytest.raises(ValueError, match="is shorter than it was"):
        data.train[torch.tensor([len(data.train) - 1])]
    assert text(str(corpus), seq_len=32).digest == data.digest, "a stream of another size is made anew"


def drop(file: Path) -> None:
    file.unlink()


def swap(file: Path) -> None:
    """Give two tokens each other's number."""
    content = json.loads(file.read_text())
    vocab = content["model"]["vocab"]
    first, second = list(vocab)[280:282]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [drop, swap])
def test_a_tokenizer_that_is_not_that_of_the_streams_is_not_trusted(
    corpus: Path, cache: Path, damage: Callable[[Path], None]
) -> None:
    first = text(str(corpus), seq_len=32, tokenizer=BPE(300))
    file = next(cache.glob("*/tokenizer.json"))
    content = file.read_text()
    damage(file)
    again = text(str(corpus), seq_len=32, tokenizer=BPE(300))
    assert file.read_text() == content, "both are made anew"
    assert again.tokenizer is not None
    assert (again.digest, again.baseline, again.tokenizer.vocab_size) == (first.digest, first.baseline, 300)


def test_a_full_disk_leaves_no_half_of_a_tokenizer(corpus: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # Python ignores the signal: writing fails
    try:
        with pytest.raises(ValueError, match=r"cannot be written to .*: File too large\nmake room there and start again"):
            text(str(corpus), seq_len=32, tokenizer=BPE(300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert text(str(corpus), seq_len=32, tokenizer=BPE(300)).shape.vocab_size == 300


def test_a_file_that_changes_before_it_is_read_is_not_kept_under_the_key_of_what_it_was(
    corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key = text_module.make_key

    def change(*arguments: Any) -> str:
        key = make_key(*arguments)
        (corpus / "0.txt").write_text("another text")
        return key

    monkeypatch.setattr(text_module, "make_key", change)
    with pytest.raises(ValueError, match=r"0\.txt has changed since it was read\nstart again"):
        text(str(corpus), seq_len=32)
    assert not list(cache.glob("[!.]*"))


def test_streams_are_made_once_a_content(corpus: Path, cache: Path) -> None:
    first = text(str(corpus), seq_len=16)
    stamp = next(cache.glob("*/train.bin")).stat().st_mtime_ns
    (corpus / "0.txt").rename(corpus / "other name.txt")
    assert text(str(corpus), seq_len=64).digest != ""
    assert [file.stat().st_mtime_ns for file in cache.glob("*/train.bin")] == [stamp], "names do not matter, nor does seq_len"
    (corpus / "1.txt").write_text("something else")
    assert text(str(corpus), seq_len=16).digest != first.digest
    assert len(list(cache.glob("*/train.bin"))) == 2


def test_what_is_left_out_is_counted_at_each_start(corpus: Path, cache: Path) -> None:
    (corpus / "empty.txt").touch()
    assert text(str(corpus), seq_len=16).notes[-1] == "left out: 1 empty"
    (corpus / "picture.png").touch()
    assert text(str(corpus), seq_len=16).notes[-1] == "left out: 1 .png files, 1 empty"
    (corpus / "picture.png").unlink()
    assert text(str(corpus), seq_len=16).notes[-1] == "left out: 1 empty"
    assert len(list(cache.glob("*/train.bin"))) == 1


def test_a_suffix_by_which_a_table_is_read_is_in_the_key(tmp_path: Path) -> None:
    rows = "".join(f"before a tab {number}\tx;between semicolons {number};y\n" for number in range(99))
    (tmp_path / "a.csv").write_text(f"text\ta;text;b\n{rows}")
    first = text(str(tmp_path / "a.csv"), seq_len=16)
    (tmp_path / "a.csv").rename(tmp_path / "a.tsv")
    assert text(str(tmp_path / "a.tsv"), seq_len=16).digest != first.digest


KILLED = """
import os, signal, sys
from pathlib import Path
from research.data import streams, text as module
from research.data.text import text
from research.data.tokenizers import BPE
module.CACHE, streams.PROGRESS_EVERY, streams.BATCH = Path(sys.argv[2]), 4000, 900
write, count = streams.write_record, [0]
def record(path, content):
    write(path, content)
    count[0] += 1
    if count[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
streams.write_record = record
print(text(sys.argv[1], seq_len=32, tokenizer=BPE(300)).digest)
"""


@pytest.mark.parametrize("moment", [2, 6])
def test_a_process_that_is_killed_goes_on_where_it_came_to(corpus: Path, cache: Path, tmp_path: Path, moment: int) -> None:
    (tmp_path / "killed.py").write_text(KILLED)

    def make(folder: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
        return run([str(tmp_path / "killed.py"), str(corpus), str(folder), str(kill_at)], tmp_path, dict(os.environ))

    killed = make(cache, moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(cache.glob("[!.]*")), "nothing that looks whole"
    assert list(cache.glob(".*/draft/*.json"))
    resumed, alone = make(cache, 0), make(tmp_path / "other", 0)
    assert resumed.stdout == alone.stdout != "", resumed.stderr
    (one,), (other,) = ([*folder.glob("[!.]*/train.bin")] for folder in (cache, tmp_path / "other"))
    assert one.read_bytes() == other.read_bytes()


def test_two_processes_make_one_cache(corpus: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED)
    argv = [str(tmp_path / "killed.py"), str(corpus), str(cache), "0"]
    with ThreadPoolExecutor(2) as pool:
        digests = {done.stdout for done in pool.map(lambda _: run(argv, tmp_path, dict(os.environ)), range(2))}
    assert len(digests) == 1
    assert len(list(cache.glob("[!.]*"))) == 1


def test_splits_of_text_are_whole_documents_and_the_test_is_apart(corpus: Path) -> None:
    data: Dataset[Tokens] = text(str(corpus), seq_len=8, val_fraction=0.2, test_fraction=0.1, val_bytes=10**6)
    assert data.test is not None
    assert data.source.startswith("21 + 6 + 3 documents")
    assert data.notes[0].endswith("of the validation lines over 40 bytes are also in the training text")


def test_near_copies_are_told(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(30):
        content = (corpus / f"{index}.txt").read_text()
        (corpus / f"copy {index}.txt").write_text(content.replace(f"document {index}", f"dokument {index}"))
    notes = " ".join(text(str(corpus), seq_len=8).notes)
    assert "are near copies of training documents" in notes
    monkeypatch.setitem(quality.MAX_SKETCHES, "train", 5)
    notes = " ".join(text(str(corpus), seq_len=8, val_fraction=0.2).notes)
    assert "are near copies of the first 5 training documents" in notes, "what is not compared is told"


def test_progress_is_noted_with_what_it_is_of(corpus: Path, cache: Path) -> None:
    text(str(corpus), seq_len=8)
    meta = json.loads(next(cache.glob("*/meta.json")).read_text())
    assert meta["version"] == streams.VERSION
    assert meta["num_documents"] == {"val": 3, "train": 27}
    assert sum(meta["num_bytes"].values()) == sum(os.path.getsize(file) for file in corpus.glob("*.txt")) + 28
