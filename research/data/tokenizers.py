"""Text as tokens: bytes, byte-pair encoding trained on the corpus, or the tokenizer of a Hugging Face folder.

A tokenizer knows how many bytes of text each token stands for, so that bits per byte can be compared whatever the tokenizer.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt
from torch import Tensor

from research.contracts import contract
from research.data.spelling import (
    BYTE_OF,
    CONFIG_FILE,
    PROBES,
    UnconvertedError,
    convert_tokenizer,
    leave_out_changes,
    read_special,
    show_difference,
    spell_token,
)
from research.ranges import VocabSize, check_settings
from research.run_dir import TOKENIZER_FOLDER as TOKENIZER_FOLDER
from research.run_dir import expand_path, replace_text, write_json

END = "<|endoftext|>"
ENDS = (END, "</s>", "<|end_of_text|>", "[SEP]", "<eos>")  # of folders that name none
FILE = "tokenizer.json"
TRAINING_BYTES = 1 << 26  # of the corpus, from its start, from which merges are learnt
Array = UInt[np.ndarray, "n"]


@contract
class Tokenizer(ABC):
    """Text to tokens and back."""

    vocab_size: int
    end: int  # the token between two documents
    name: str  # for people
    unit = "tokens"  # for people
    is_byte_level = True  # its tokens are written in GPT-2's alphabet of bytes

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Return the smallest type that holds all tokens."""
        return np.min_scalar_type(self.vocab_size - 1)

    @property
    def learns(self) -> bool:
        """Return whether its vocabulary, and with that its name, comes of the corpus."""
        return type(self).train is not Tokenizer.train

    def train(self, pieces: Iterable[bytes]) -> None:  # noqa: B027
        """Learn the vocabulary from text; one that is fixed learns nothing."""

    @abstractmethod
    def encode(self, pieces: Sequence[bytes]) -> list[Array]:
        """Return the tokens of each piece of UTF-8."""

    @property
    @abstractmethod
    def spellings(self) -> Sequence[bytes]:
        """Return the text that each token stands for."""

    def decode(self, tokens: Iterable[int]) -> bytes:
        """Return the text of tokens, without ends."""
        return b"".join(self.spellings[token] for token in tokens if token != self.end)

    def count_bytes(self) -> Int[np.ndarray, "vocab"]:
        """Return how many bytes of text each token stands for; the end of a document counts as one."""
        counts = np.array([len(spelling) for spelling in self.spellings])
        counts[self.end] = 1
        return counts

    @property
    def token_bytes(self) -> Int[Tensor, "vocab"] | None:
        """Return these counts for a split; None for one each."""
        return torch.from_numpy(self.count_bytes())

    @abstractmethod
    def describe(self) -> str:
        """Return what decides its tokens, as a key of a cache: before it is trained, the settings of the training."""

    @abstractmethod
    def to_library(self) -> Any:
        """Return it as a tokenizer of the `tokenizers` library."""

    def save(self, folder: Path) -> None:
        """Write it into a folder, from which `load_tokenizer` reads it."""
        write_tokenizer(self, folder)


class Bytes(Tokenizer):
    """The 256 bytes themselves. The byte 0, which no text holds, ends a document."""

    vocab_size, end, name, unit = 256, 0, "bytes", "bytes"

    @contract
    def encode(self, pieces: Sequence[bytes]) -> list[Array]:
        return [np.frombuffer(piece, dtype=np.uint8) for piece in pieces]

    spellings = tuple(bytes([byte]) for byte in range(256))

    token_bytes = None

    @contract
    def save(self, folder: Path) -> None:
        """Make the folder: one without a tokenizer is of bytes."""
        folder.mkdir(parents=True, exist_ok=True)

    def describe(self) -> str:
        return "bytes"

    def to_library(self) -> Any:
        import tokenizers as hf
        from tokenizers import decoders, models, pre_tokenizers

        tokenizer = hf.Tokenizer(models.BPE(BYTE_OF, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer


class Library(Tokenizer):
    """A tokenizer of the `tokenizers` library. What its training or its folder gave stands in `tokenizer`."""

    tokenizer: Any = None

    def to_library(self) -> Any:
        if self.tokenizer is None:
            raise ValueError("data.tokenizer is not trained yet: call train(pieces) first")
        return self.tokenizer

    def _take(self, tokenizer: Any, end: str, name: str) -> None:
        """Take over a tokenizer; `end` is the token between two documents."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # the name of one in a text is text
        index = tokenizer.token_to_id(end)
        assert index is not None
        self.tokenizer, self.end, self.name = tokenizer, index, name
        self.is_byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str())["decoder"])
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())

    @contract
    def encode(self, pieces: Sequence[bytes]) -> list[Array]:
        texts = [piece.decode(errors="replace") for piece in pieces]  # only a prompt holds what is no UTF-8
        encodings = self.to_library().encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=self.dtype) for encoding in encodings]

    @cached_property
    def spellings(self) -> list[bytes]:
        """The text that each token stands for; none for special tokens and the end."""
        spellings = [b""] * self.vocab_size
        for token, index in self.to_library().get_vocab(with_added_tokens=False).items():
            spellings[index] = spell_token(token, self.is_byte_level)
        for index, added in self.to_library().get_added_tokens_decoder().items():
            spellings[index] = b"" if added.special else added.content.encode()
        spellings[self.end] = b""
        return spellings

    def describe(self) -> str:
        return f"{sha256(self.to_library().to_str().encode()).hexdigest()} {self.end}"


class BPE(Library):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, 1508.07909; bytes as Radford et al. 2019), trained on the corpus.

    The same text gives the same merges. Raise ValueError for a vocabulary below 257: the bytes and the end.
    """

    def __init__(self, vocab_size: VocabSize = 4096) -> None:
        check_settings("data.tokenizer", BPE.__init__.__annotations__, locals())
        self.vocab_size, self.name = vocab_size, f"BPE of {vocab_size:,}"

    @contract
    def train(self, pieces: Iterable[bytes]) -> None:
        import tokenizers as hf
        from tokenizers import decoders, models, pre_tokenizers, trainers

        tokenizer = hf.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator((piece.decode() for piece in take_bytes(pieces, TRAINING_BYTES)), trainer)
        self._take(tokenizer, END, f"BPE of {tokenizer.get_vocab_size():,}")

    def describe(self) -> str:
        return f"bpe {self.vocab_size} of {TRAINING_BYTES}"


class Folder(Library):
    """The tokenizer of a Hugging Face folder: its tokenizer.json, or what transformers makes one of; and its end.

    What in it changes texts, as a normalizer, is left out. Raise ValueError for a folder without a tokenizer, without a token
    that ends a document, or whose tokens do not spell the text.
    """

    def __init__(self, path: str, end: str | None = None) -> None:
        import tokenizers as hf

        folder, self.path = expand_path(path), path
        file = folder / FILE if folder.is_dir() else folder
        try:
            text = file.read_text(encoding="utf-8") if file.is_file() else convert_tokenizer(folder)
            settings, changes = leave_out_changes(json.loads(text))
            tokenizer = hf.Tokenizer.from_str(json.dumps(settings))
        except Exception as error:  # the library raises Exception itself
            what, _, fix = (str(error) if isinstance(error, UnconvertedError) else f"{file} cannot be read: {error}").partition(
                "\n"
            )
            raise ValueError(f"data.tokenizer.path={path}: {what}\n{fix}".rstrip()) from None
        names = (
            [end] if end else [*read_special(file.parent, tokenizer, "eos"), END, "</s>", "<|end_of_text|>", "[SEP]", "<eos>"]
        )
        known = [name for name in names if tokenizer.token_to_id(name) is not None]
        if not known:
            special = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
            problem = f"end={end}: {file} has no such token" if end else f"path={path}: no {CONFIG_FILE} names its eos_token"
            listed = f"its special tokens: {', '.join(special[:8])}" if special else "it has no special token"
            example = f"""tokenizer=folder 'data.tokenizer.end="{special[0] if special else "TOKEN"}"'"""
            raise ValueError(f"data.tokenizer.{problem}\ngive {example}, a token that ends a document; {listed}")
        self._take(tokenizer, known[0], f"the tokenizer of {path}{' without ' * bool(changes)}{', '.join(changes)}")
        self.encode(PROBES)

    @contract
    def encode(self, pieces: Sequence[bytes]) -> list[Array]:
        """Return the tokens of each piece. Raise ValueError where they spell another text: bits per byte would be of that."""
        encoded = super().encode(pieces)
        for piece, tokens in zip(pieces, encoded, strict=True):
            text = piece.decode(errors="replace").encode()
            spelled = b"".join(map(self.spellings.__getitem__, tokens.tolist()))  # at 25 MB/s
            if spelled != text:
                kind, shown = type(self.tokenizer.model).__name__, show_difference(text, spelled)
                message = f"data.tokenizer.path={self.path}: its {kind} tokens do not spell the text: {shown}"
                raise ValueError(f"{message}\ngive tokenizer=bpe, a tokenizer of bytes, or one that falls back to them")
        return encoded


@contract
def load_tokenizer(folder: Path) -> Tokenizer:
    """Return the tokenizer that `save` wrote into a folder; bytes where there is none."""
    return Folder(str(folder)) if (folder / FILE).is_file() else Bytes()


@contract
def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_seq_len: int | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json, from which transformers makes batches that are padded on the left."""
    folder.mkdir(parents=True, exist_ok=True)
    library = tokenizer.to_library()
    end = library.id_to_token(tokenizer.end)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",  # generated text follows the prompt
        "split_special_tokens": True,  # the end's name (for bytes the letter U+0100) in a text is text
    }
    config = {key: value for key, value in config.items() if value is not None}
    write_json(folder / CONFIG_FILE, config)
    replace_text(folder / FILE, library.to_str(pretty=True))  # the last: where it is, all is


@contract
def hash_tokenizer(folder: Path) -> str:
    """Return a digest of what `save` wrote into a folder."""
    files = (folder / FILE, folder / CONFIG_FILE)
    return sha256(b"\0".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


@contract
def take_bytes(pieces: Iterable[bytes], limit: int) -> Iterable[bytes]:
    """Yield pieces until `limit` bytes are reached."""
    for piece in pieces:
        yield piece
        if (limit := limit - len(piece)) <= 0:
            return
