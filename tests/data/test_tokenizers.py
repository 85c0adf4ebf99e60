"""Tokenizers: whatever they are, their tokens spell the text, so that bits per byte are of the text."""

import json
import math
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from research.data import text as text_module
from research.data.spec import Split
from research.data.spelling import show_difference
from research.data.text import text
from research.data.tokenizers import BPE, END, Bytes, Folder, Tokenizer, load_tokenizer, write_tokenizer
from research.training.evaluate import evaluate

TEXT = "the packed ternary layers of a network learn to read a text of words and lines"
CONTENTS = [
    "the network ## is learning",
    " the\r\n\n  Network <m>  a\t",
    "漢字 \U0001f600 \ufb01 e\u0301 é",
    "x",
    "",
]
MARK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOLD = "a space before a text"


def make_bytes_bpe(prefix: bool = False) -> Any:
    """A byte-level BPE, one of whose tokens is "##"."""
    tokenizer = hf.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = hf.trainers.BpeTrainer(vocab_size=290, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{TEXT} ## ##"] * 9, trainer)
    return tokenizer


def make_sentencepiece(scheme: str = "never", normalizer: Any = None, added: Any = None) -> Any:
    """A Unigram tokenizer as SentencePiece makes them: spaces are marked, what it does not know is spelled in bytes."""
    letters = [(letter, -3.0) for letter in MARK + "abcdefghijklmnoprstuvwxy"]
    words = [(f"{MARK}the", -1.0), (f"{MARK}network", -1.0), ("network", -1.0), ("ing", -1.0), ("##", -1.0)]
    vocab = [("<unk>", 0.0), ("</s>", 0.0), *((byte, -20.0) for byte in BYTES), *letters, *words]
    tokenizer = hf.Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.add_tokens([added] if added else [])
    return tokenizer


def make_llama(dropout: float | None = None) -> Any:
    """A BPE that falls back to bytes, with the marks of spaces as Llama 2 sets and takes them off."""
    vocab = {token: index for index, token in enumerate(["<unk>", "</s>", *BYTES, MARK, "t", "h", "e", "#", "th", "##"])}
    model = models.BPE(vocab, [("t", "h"), ("#", "#")], unk_token="<unk>", byte_fallback=True, fuse_unk=True, dropout=dropout)
    tokenizer = hf.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    unmark = decoders.Replace(MARK, " ")
    tokenizer.decoder = decoders.Sequence([unmark, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def make_wordpiece() -> Any:
    tokenizer = hf.Tokenizer(models.WordPiece({"[UNK]": 0, "[SEP]": 1, "the": 2, "##s": 3}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def make_words() -> Any:
    tokenizer = make_bytes_bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), tokenizer.pre_tokenizer])
    return tokenizer


def make_letters() -> Any:
    """A tokenizer of letters, with a token for what it does not know."""
    return hf.Tokenizer(models.Unigram([("</s>", 0.0), *((chr(code), -3.0) for code in range(32, 127))], unk_id=0))


def save_library(tokenizer: Any, folder: Path) -> str:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


EATING = hf.AddedToken("<m>", lstrip=True, rstrip=True)
# A tokenizer -> what its name says to be left out of it.
SPELLING: dict[str, tuple[Callable[[], Any], str]] = {
    "byte pairs": (make_bytes_bpe, ""),
    "byte pairs after a space": (lambda: make_bytes_bpe(prefix=True), TOLD),
    "byte pairs of NFC": (lambda: set_normalizer(make_bytes_bpe(), normalizers.NFC()), "its NFC"),
    "marks": (make_sentencepiece, ""),
    "a mark before each text": (lambda: make_sentencepiece("always"), TOLD),
    "a mark before the first": (lambda: make_sentencepiece("first"), TOLD),
    "NFKC": (lambda: make_sentencepiece(normalizer=normalizers.NFKC()), "its NFKC"),
    "small letters, no ends": (
        lambda: make_sentencepiece(normalizer=normalizers.Sequence([normalizers.Lowercase(), normalizers.Strip()])),
        "its Lowercase, its Strip",
    ),
    "other words": (lambda: make_sentencepiece(normalizer=normalizers.Replace("network", "net")), "its Replace"),
    "an added token": (lambda: make_sentencepiece(added=hf.AddedToken("<m>")), ""),
    "an added token that eats spaces": (lambda: make_sentencepiece(added=EATING), "spaces around added tokens"),
    "Llama 2": (make_llama, "its Prepend"),
    "chance": (lambda: make_llama(dropout=0.5), "its Prepend, dropout"),
}
# A tokenizer that cannot spell every text -> what the message says.
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "WordPiece": (make_wordpiece, r"its WordPiece tokens do not spell the text: 'A  b"),
    "words": (make_words, r"its BPE tokens do not spell the text: 'A  b.*becomes 'Ab"),
    "letters": (make_letters, r"its Unigram tokens do not spell the text"),
}


def set_normalizer(tokenizer: Any, normalizer: Any) -> Any:
    tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize("kind", SPELLING)
def test_the_tokens_of_a_folder_spell_every_text(tmp_path: Path, kind: str) -> None:
    make, changes = SPELLING[kind]
    tokenizer = Folder(path := save_library(make(), tmp_path / "folder"))
    assert tokenizer.name == f"the tokenizer of {path}" + f" without {changes}" * bool(changes)
    tokenizer.save(tmp_path / "saved")
    again = load_tokenizer(tmp_path / "saved")
    assert again.name.endswith("saved"), "nothing more is left out"
    for content in CONTENTS:
        (tokens,) = tokenizer.encode([content.encode()])
        assert tokenizer.decode(tokens.tolist()) == content.encode()
        assert tokenizer.count_bytes()[tokens].sum() == len(content.encode())
        assert tokenizer.to_library().decode(tokens.tolist(), skip_special_tokens=False) == content, "a client's way"
        assert again.encode([content.encode()])[0].tolist() == tokens.tolist()


def test_words_of_the_vocabulary_are_single_tokens(tmp_path: Path) -> None:
    tokenizer = Folder(save_library(make_sentencepiece("always"), tmp_path / "folder"))
    assert [len(tokens) for tokens in tokenizer.encode([b"network the network", b"##", b" the"])] == [3, 1, 1]


@pytest.mark.parametrize("kind", REFUSED)
def test_tokens_that_do_not_spell_every_text_are_refused(tmp_path: Path, kind: str) -> None:
    make, words = REFUSED[kind]
    with pytest.raises(ValueError, match=words):
        Folder(save_library(make(), tmp_path / "folder"))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve documents with small and large letters, of one to three bytes."""
    monkeypatch.setattr(text_module, "CACHE", tmp_path / "cache")
    (tmp_path / "corpus").mkdir()
    for number in range(12):
        (tmp_path / "corpus" / f"{number}.txt").write_text(f"{number} The Network\n e\u0301 漢 <m> {TEXT} " * 20)
    return tmp_path / "corpus"


@pytest.mark.parametrize(
    ("content", "words"),
    [(f"some bars: {MARK}\u2582\n", "'e bars: .* becomes 'e bars:  .*'"), ("a </s> b", "'a </s> b' becomes 'a  b'")],
)
def test_a_text_that_the_tokens_do_not_spell_is_refused(tmp_path: Path, corpus: Path, content: str, words: str) -> None:
    """A Unigram takes the name of any token in a text for the token; a BPE does not."""
    (corpus / "other.txt").write_text(content)
    tokenizer = Folder(save_library(make_sentencepiece(), tmp_path / "folder"))
    with pytest.raises(ValueError, match=rf"do not spell the text: {words}\ngive tokenizer=bpe"):
        text(str(corpus), seq_len=8, tokenizer=tokenizer)
    pairs = Folder(save_library(make_llama(), tmp_path / "pairs"))
    assert pairs.decode(pairs.encode([b"a </s> <0x41>"])[0].tolist()) == b"a </s> <0x41>"


@pytest.mark.parametrize("kind", ["folder", "bpe"])
def test_the_data_line_names_the_tokenizer_that_was_given_now(tmp_path: Path, corpus: Path, kind: str) -> None:
    """Streams are cached by what decides their tokens, and a folder's path does not."""
    if kind == "bpe":  # its name is of what it has learnt
        names = [text(str(corpus), seq_len=8, tokenizer=BPE(4096)).source.rpartition(", ")[2] for _ in range(2)]
        assert names[0] == names[1] != "BPE of 4,096"
        return
    for name in ("one", "other"):
        folder = save_library(make_bytes_bpe(), tmp_path / name)
        assert text(str(corpus), seq_len=8, tokenizer=Folder(folder)).source.endswith(f"the tokenizer of {folder}")
    assert len(list((tmp_path / "cache").glob("*/meta.json"))) == 1


@pytest.mark.parametrize(("one", "other", "shown"), [(b"ab", b"abc", "'ab' becomes 'abc'"), (b"", b"x", "'' becomes 'x'")])
def test_a_difference_is_shown_where_it_begins(one: bytes, other: bytes, shown: str) -> None:
    assert show_difference(one, other) == shown


@pytest.mark.parametrize("kind", ["bytes", "bpe", "saved", *SPELLING])
def test_bits_per_byte_are_those_of_the_text_whatever_the_tokenizer(corpus: Path, tmp_path: Path, kind: str) -> None:
    """A model that loses c ln 2 nats for each byte of the text has c bits per byte."""
    bits = 1.375
    tokenizer: Tokenizer = Bytes() if kind == "bytes" else BPE(300)
    if kind == "saved":
        tokenizer.train([b"the text of a folder"] * 9)
        write_tokenizer(tokenizer, tmp_path / "folder")
        tokenizer = Folder(str(tmp_path / "folder"))
    if kind in SPELLING:
        tokenizer = Folder(save_library(SPELLING[kind][0](), tmp_path / "folder"))
    data = text(str(corpus), seq_len=32, tokenizer=tokenizer, val_bytes=10**6)
    assert isinstance(data.val, Split)
    assert data.tokenizer
    decoded = [data.tokenizer.decode([token]) for token in range(data.shape.vocab_size)]
    sizes = torch.tensor([1 if token == data.tokenizer.end else len(part) for token, part in enumerate(decoded)])
    read = data.tokenizer.decode(data.val.targets.flatten().tolist())
    assert any(read in file.read_bytes() for file in corpus.iterdir()), "all of it is in the text, and in its order"

    def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return sizes[targets] * bits * math.log(2)

    model = torch.nn.Embedding(data.shape.vocab_size, data.shape.vocab_size)
    metrics = evaluate(model, data.val, loss, 7)
    assert metrics["val/bpb"] == pytest.approx(bits, abs=1e-6)
    total = metrics["val/loss"] * data.val.targets.numel() / math.log(2)
    assert total / len(read) == pytest.approx(bits, abs=1e-6), "of the bytes that are read"


def test_the_bytes_of_all_tokens_are_those_of_the_text() -> None:
    content = TEXT * 9 + " 漢字 \U0001f600\r\n\t"
    tokenizer = BPE(350)
    tokenizer.train([content.encode()])
    tokens = tokenizer.encode([content.encode()])[0]
    assert tokenizer.decode(tokens.tolist()) == content.encode()
    assert tokenizer.count_bytes()[tokens].sum() == len(content.encode())
    assert tokenizer.count_bytes()[tokenizer.end] == 1


def test_a_tokenizer_is_the_same_after_training_twice_and_from_its_folder(tmp_path: Path) -> None:
    pieces = [TEXT.encode()] * 5
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
    ("content", "end", "words"),
    [
        (None, None, "there is no tokenizer.json"),
        ("{", None, "cannot be read"),
        ("{}", None, "cannot be read"),
        ([], None, r"names its eos_token\n.*TOKEN.*it has no special token"),
        (
            ["[EOS]", "[PAD]"],
            None,
            r"names its eos_token\ngive tokenizer=folder 'data.*end=\"\[EOS\]\"'.*: \[EOS\], \[PAD\]",
        ),
        (["[EOS]"], "[END]", r"data.tokenizer.end=\[END\]: .* has no such token\ngive .*: \[EOS\]"),
    ],
)
def test_a_folder_without_a_tokenizer_or_an_end_is_refused(
    tmp_path: Path, content: str | list[str] | None, end: str | None, words: str
) -> None:
    if isinstance(content, list):
        tokenizer = hf.Tokenizer(models.BPE({"a": 0}, []))
        tokenizer.add_special_tokens(content)
        content = tokenizer.to_str()
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=words):
        Folder(str(tmp_path), end)


@pytest.mark.filterwarnings("ignore")  # transformers' own, at its import
def test_older_files_become_a_fast_tokenizer(tmp_path: Path) -> None:
    """vocab.json and merges.txt are what GPT-2 came with; the end may be named by its number alone."""
    pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
    known = make_bytes_bpe()
    model = json.loads(known.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": model["vocab"]["</s>"]}))
    tokenizer = Folder(str(tmp_path))
    assert tokenizer.encode([TEXT.encode()])[0].tolist() == known.encode(TEXT).ids
    assert tokenizer.end == model["vocab"]["</s>"]


@pytest.mark.parametrize(("name", "library"), [("tokenizer.model", "sentencepiece"), ("vocab.json", "")])
@pytest.mark.filterwarnings("ignore")
def test_files_that_become_no_fast_tokenizer_are_refused(name: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs pip install -e '.[hub]'")
    if library and find_spec(library):
        pytest.skip(f"{library} is installed")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / name).write_bytes(b"abc")
    words = f"it needs {library}\npip install {library}, or give the folder" if library else "\ngive the folder of a fast"
    with pytest.raises(ValueError, match=f"{name} becomes no tokenizer.json: ") as caught:
        Folder(str(tmp_path))
    assert words in str(caught.value)
