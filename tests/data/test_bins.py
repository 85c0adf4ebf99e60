"""Token streams on the disk: the same samples as in memory, made once, continued after a kill, never half there."""

import json
import math
import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from program import run

from research.data import bins, quality, streams
from research.data import text as text_module
from research.data.bins import Bins
from research.data.spec import Dataset, Split, Tokens
from research.data.text import text
from research.data.tokenizers import BPE, END, Bytes, Folder, Tokenizer, load_tokenizer, write_tokenizer
from research.training.evaluate import evaluate

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


def test_streams_are_made_once_a_content(corpus: Path, cache: Path) -> None:
    first = text(str(corpus), seq_len=16)
    stamp = next(cache.glob("*/train.bin")).stat().st_mtime_ns
    (corpus / "0.txt").rename(corpus / "other name.txt")
    assert text(str(corpus), seq_len=64).digest != ""
    assert [file.stat().st_mtime_ns for file in cache.glob("*/train.bin")] == [stamp], "names do not matter, nor does seq_len"
    (corpus / "1.txt").write_text("something else")
    assert text(str(corpus), seq_len=16).digest != first.digest
    assert len(list(cache.glob("*/train.bin"))) == 2


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


def make_sentencepiece() -> Any:
    """A Unigram tokenizer as SentencePiece makes them: spaces are marked, what it does not know is spelled in bytes."""
    letters = [(letter, -3.0) for letter in "\u2581abcdefghijklmnoprstuvwxy"]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((f"<0x{byte:02X}>", -20.0) for byte in range(256)), *letters]
    words = [("\u2581the", -1.0), ("\u2581network", -1.0), ("ing", -1.0)]
    tokenizer = hf.Tokenizer(hf.models.Unigram([*vocab, *words], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    return tokenizer


def make_wordpiece() -> Any:
    tokenizer = hf.Tokenizer(hf.models.WordPiece({"[UNK]": 0, "[SEP]": 1, "the": 2, "##s": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    return tokenizer


def save_library(tokenizer: Any, folder: Path) -> str:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def test_tokens_that_do_not_spell_the_text_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its WordPiece tokens do not spell the text: 'A  b"):
        Folder(save_library(make_wordpiece(), tmp_path / "folder"))


def test_a_sentencepiece_folder_spells_every_text(tmp_path: Path) -> None:
    tokenizer = Folder(save_library(make_sentencepiece(), tmp_path / "folder"))
    for content in ("the network is learning", "漢字 \U0001f600\n\tA", "x"):
        (tokens,) = tokenizer.encode([content.encode()])
        assert tokenizer.decode(tokens.tolist()) == f" {content}".encode(), "a space before a text is its way"
        assert tokenizer.count_bytes()[tokens].sum() == len(content.encode()) + 1
    assert len(tokenizer.encode([b"the network"])[0]) == 2


@pytest.mark.parametrize("kind", ["bytes", "bpe", "folder", "sentencepiece"])
def test_bits_per_byte_are_those_of_the_text_whatever_the_tokenizer(corpus: Path, tmp_path: Path, kind: str) -> None:
    """A model that loses c ln 2 nats for each byte of a token has c bits per byte."""
    bits = 1.375
    tokenizer: Tokenizer = Bytes() if kind == "bytes" else BPE(300)
    if kind == "folder":
        tokenizer.train([b"the text of a folder"] * 9)
        write_tokenizer(tokenizer, tmp_path / "folder")
        tokenizer = Folder(str(tmp_path / "folder"))
    if kind == "sentencepiece":
        tokenizer = Folder(save_library(make_sentencepiece(), tmp_path / "folder"))
    data = text(str(corpus), seq_len=32, tokenizer=tokenizer)
    assert data.tokenizer
    sizes = torch.from_numpy(data.tokenizer.count_bytes())

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sizes[targets] * bits * math.log(2)

    model = torch.nn.Embedding(data.shape.vocab_size, data.shape.vocab_size)
    metrics = evaluate(model, data.val, loss, 7)
    assert metrics["val/bpb"] == pytest.approx(bits, abs=1e-6)
    assert metrics["val/loss"] >= bits * math.log(2)


def test_the_bytes_of_all_tokens_are_those_of_the_text(corpus: Path) -> None:
    content = "".join(file.read_text() for file in sorted(corpus.glob("*.txt"))) + " 漢字 \U0001f600\r\n\t"
    tokenizer = BPE(350)
    tokenizer.train([content.encode()])
    tokens = tokenizer.encode([content.encode()])[0]
    assert tokenizer.decode(tokens.tolist()) == content.encode()
    assert tokenizer.count_bytes()[tokens].sum() == len(content.encode())
    assert tokenizer.count_bytes()[tokenizer.end] == 1


def test_a_tokenizer_is_the_same_after_training_twice_and_from_its_folder(tmp_path: Path) -> None:
    pieces = [" ".join(WORDS).encode()] * 5
    one, two = BPE(290), BPE(290)
    one.train(pieces)
    two.train(pieces)
    assert one.describe() == two.describe()
    one.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(pieces)[0].tolist() == one.encode(pieces)[0].tolist()
    assert load_tokenizer(tmp_path / "none").name == "bytes"


def test_the_name_of_the_end_in_a_text_is_text() -> None:
    tokenizer = BPE(300)
    tokenizer.train([b"some words"])
    tokens = tokenizer.encode([END.encode()])[0]
    assert tokenizer.end not in tokens
    assert tokenizer.decode(tokens.tolist()) == END.encode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no tokenizer.json"),
        ("{", "cannot be read"),
        ('{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}', "no such token"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        Folder(str(tmp_path))


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
