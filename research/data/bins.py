"""Token streams on the disk, made once for a corpus and a tokenizer, and read by number.

They are read and not mapped: a map counts as memory, fails under a limit of address space, and ends the process where the file
shrinks.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from research.contracts import contract
from research.data.corpus import Corpus
from research.data.spec import Samples, Split
from research.data.streams import META, VERSION, write_streams
from research.data.tokenizers import Tokenizer, hash_tokenizer, load_tokenizer
from research.files.cache import hash_file, wait_for_lock
from research.run_dir import read_json, sync

CPU = torch.device("cpu")
BLOCK = 1 << 22  # bytes
IN_MEMORY = 1 << 28  # bytes: smaller streams are held in memory


@contract
@dataclass(frozen=True)
class Bins:
    """Windows of a stream in a file: window i has the tokens from i * seq_len to (i + 1) * seq_len, and one more as target."""

    file: Path
    dtype: np.dtype[Any]
    num_tokens: int
    seq_len: int
    token_bytes: Int[Tensor, "vocab"] | None = None
    device: torch.device = CPU
    has_classes = True

    @property
    def target_shape(self) -> torch.Size:
        return torch.Size([self.seq_len])

    def __len__(self) -> int:
        return (self.num_tokens - 1) // self.seq_len

    def __getitem__(self, index: Int[Tensor, "batch"]) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
        rows = np.empty((len(index), self.seq_len + 1), dtype=self.dtype)
        with self.file.open("rb", buffering=0) as stream:
            for row, number in zip(rows, index.tolist(), strict=True):
                if os.preadv(stream.fileno(), [row], number * self.seq_len * self.dtype.itemsize) != row.nbytes:
                    raise ValueError(f"{self.file} is shorter than it was\ndelete {self.file.parent}, and start again")
        tokens = torch.from_numpy(rows.astype(np.int64)).to(self.device)
        return tokens[:, :-1], tokens[:, 1:]

    def count_targets(self, index: Int[Tensor, "batch"]) -> Tensor | int:
        return len(index) * self.seq_len

    def take(self, count: int | None) -> "Bins":
        return self if count is None else replace(self, num_tokens=min(self.num_tokens, count * self.seq_len + 1))

    def to(self, device: torch.device) -> "Bins":
        return replace(self, device=device, token_bytes=None if self.token_bytes is None else self.token_bytes.to(device))


@dataclass(frozen=True)
class Windows(Split):
    """Some windows of a stream, in memory, each with the number of the document in which it begins."""

    documents: Int[Tensor, "windows"] | None = None

    def take(self, count: int | None) -> "Windows":
        documents = None if self.documents is None else self.documents[:count]
        return replace(self, inputs=self.inputs[:count], targets=self.targets[:count], documents=documents)


@contract
@dataclass(frozen=True)
class Streams:
    """What is in a folder of the cache."""

    folder: Path
    tokenizer: Tokenizer
    num_tokens: dict[str, int] = field(default_factory=dict)  # of each stream: train (or train-0, ...), val, test
    num_bytes: dict[str, int] = field(default_factory=dict)  # of text, an end of a document between two as one
    num_documents: dict[str, int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of the stream
    left_out: dict[str, int] = field(default_factory=dict)  # documents, by kind; of files each start counts its own
    gzip_bits: float = 0.0  # bits per byte of the validation text
    notes: tuple[str, ...] = ()
    tokenizer_name: str = ""
    tokenizer_digest: str = ""  # of its files

    @property
    def training(self) -> list[str]:
        """Return the names of the training streams: one, or one a source."""
        return [name for name in self.num_tokens if name.startswith("train")]

    def open(self, name: str, seq_len: int) -> Samples:
        """Return the windows of a stream. Raise ValueError where there is not one."""
        if (count := self.num_tokens[name]) <= seq_len:
            long = {"val": "validation", "test": "test", "train": "training"}.get(name, f"training ({name})")
            why = f"the {long} split has {count:,} {self.tokenizer.unit}"
            raise ValueError(f"data.seq_len={seq_len} is too long: {why}; give a smaller one or more text")
        token_bytes, file, dtype = self.tokenizer.token_bytes, self.folder / f"{name}.bin", self.tokenizer.dtype
        if count * dtype.itemsize > IN_MEMORY:
            return Bins(file, dtype, count, seq_len, token_bytes)
        tokens = np.fromfile(file, dtype=dtype)
        stream = torch.from_numpy(tokens if dtype == np.uint8 else tokens.astype(np.int32))
        windows = stream.unfold(0, seq_len + 1, seq_len)  # a view: a window is copied when it is drawn
        return Split(windows[:, :-1], windows[:, 1:], token_bytes)

    def count_tokens(self) -> Int[Tensor, "vocab"]:
        """Return how often each token is in the training streams."""
        counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)
        for name in self.training:
            with (self.folder / f"{name}.bin").open("rb") as stream:
                while block := stream.read(BLOCK):
                    counts += np.bincount(np.frombuffer(block, dtype=self.tokenizer.dtype), minlength=len(counts))
        return torch.from_numpy(counts)

    def number_documents(self, name: str, starts: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return the document, numbered from 0, of each token at `starts` of a stream; an end belongs to the one before."""
        ends, offset = [np.empty(0, dtype=np.int64)], 0
        with (self.folder / f"{name}.bin").open("rb") as stream:
            while block := stream.read(BLOCK):
                tokens = np.frombuffer(block, dtype=self.tokenizer.dtype)
                ends.append(np.flatnonzero(tokens == self.tokenizer.end) + offset)
                offset += len(tokens)
        return torch.from_numpy(np.searchsorted(np.concatenate(ends), starts.numpy()))


@contract
def prepare_streams(
    root: Path, key: str, read: Callable[[], Sequence[Corpus]], shares: Sequence[float], tokenizer: Tokenizer
) -> Streams:
    """Return the streams of a key, from the cache below `root` or made now; another process that makes them is waited for.

    An equal tokenizer of another folder shares them, so one that does not learn keeps the name that it has now.
    """
    folder = root / key
    streams = read_streams(folder) or fill_streams(root, key, read, shares, tokenizer)
    return streams if tokenizer.learns else replace(streams, tokenizer_name=tokenizer.name)


def fill_streams(
    root: Path, key: str, read: Callable[[], Sequence[Corpus]], shares: Sequence[float], tokenizer: Tokenizer
) -> Streams:
    """Return the streams of a key, made now or meanwhile by another process."""
    folder = root / key
    with wait_for_lock(root / f".{key}", "makes the tokens"):
        if streams := read_streams(folder):
            return streams
        draft = root / f".{key}" / "draft"
        corpora = read()
        try:
            write_streams(draft, corpora, shares, tokenizer)
        except OSError as error:  # a full disk, as it is for most
            fix = "make room there and start again: it goes on where it came to"
            raise ValueError(f"data: the tokens cannot be written to {draft}: {error.strerror}\n{fix}") from error
        if folder.exists():  # another size than it had
            shutil.rmtree(folder)
        draft.rename(folder)
        sync(root)
    streams = read_streams(folder)
    assert streams
    return streams


def read_streams(folder: Path) -> Streams | None:
    """Return what is in a folder of the cache; None where that is not whole, by the digests of its streams and tokenizer."""
    meta = read_json(folder / META) if (folder / META).exists() else {}
    if meta.pop("version", None) != VERSION:
        return None
    try:
        streams = Streams(folder, load_tokenizer(folder), **meta | {"notes": tuple(meta["notes"])})
        is_whole = streams.tokenizer_digest == hash_tokenizer(folder)
        is_whole &= all(hash_file(folder / f"{name}.bin") == digest for name, digest in streams.digests.items())
    except (KeyError, TypeError, ValueError, OSError):  # a damaged record, tokenizer or file
        return None
    return streams if is_whole and streams.digests else None
