"""Language modelling on text of your own: files, tables and JSONL, as windows of tokens whose targets are the next tokens."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

import torch

from research.data.bins import Streams, prepare_streams
from research.data.corpus import Corpus, Reader, read_corpus
from research.data.documents import SUFFIXES, Format, check_encoding
from research.data.sources import Counts, find_files
from research.data.spec import Dataset, Samples, Split, Tokens, unigram_cross_entropy
from research.data.streams import VERSION
from research.data.tokenizers import Bytes, Tokenizer
from research.metrics import nats_to_bits
from research.ranges import ExistingPath, Fraction, OpenFraction, PositiveInt, check_settings
from research.run_dir import ROOT

CACHE = ROOT / "outputs" / "cache" / "tokens"


def text(
    path: ExistingPath | list[str] | None = None,  # None: the sources of this Python's standard library
    pattern: str | list[str] | None = None,
    format: Format = "auto",  # noqa: A002
    field: str | list[str] = "text",
    encoding: str = "utf-8",
    defects: Literal["refuse", "skip"] = "refuse",
    tokenizer: Tokenizer | None = None,
    seq_len: PositiveInt = 256,
    val_fraction: OpenFraction = 0.1,
    test_fraction: Fraction = 0.0,
    val_bytes: PositiveInt = 65_536,  # bytes of the validation text that an evaluation reads
) -> Dataset[Tokens]:
    """Return windows of `seq_len` tokens; the targets are the next tokens.

    Raise ValueError for a path without text, for files and rows that cannot be read, or less text than `seq_len`.
    """
    check_settings("data", text.__annotations__, locals())
    tokenizer = tokenizer or Bytes()
    reader = Reader(format, (field,) if isinstance(field, str) else tuple(field), check_encoding(encoding))
    counts = Counts()
    files = find_files(path, pattern, counts)
    settings = [VERSION, reader, val_fraction, test_fraction, defects, tokenizer.describe()]

    def read() -> Corpus:
        return read_corpus(files, reader, (val_fraction, test_fraction), defects == "skip", counts)

    streams = prepare_streams(CACHE, make_key(files, settings), read, tokenizer)
    train, val = streams.open("train", seq_len), select_evenly(streams, seq_len, val_bytes)
    test = streams.open("test", seq_len) if "test" in streams.num_tokens else None
    targets = val.targets.flatten()
    read_targets = targets.numpy().astype(streams.tokenizer.dtype).tobytes()
    digest = sha256(bytes.fromhex(streams.digests["train"]) + read_targets).hexdigest()
    nats = unigram_cross_entropy(streams.count_tokens("train"), targets.long()).item()
    num_bytes = len(targets) if val.token_bytes is None else int(val.token_bytes[targets.long()].sum())
    baseline = {"val/loss unigram": nats, "val/bpb unigram": nats_to_bits(nats * len(targets) / max(1, num_bytes))}
    baseline["val/bpb gzip"] = streams.gzip_bits
    parts = " + ".join(f"{streams.num_documents[name]:,}" for name in ("train", "val", "test") if name in streams.num_tokens)
    source = f"{parts} documents, {sum(streams.num_bytes.values()) / 1e6:.1f} MB, {streams.tokenizer_name}"
    notes = (*streams.notes, *([f"left out: {streams.left_out}"] if streams.left_out else []))
    return Dataset(
        Tokens(streams.tokenizer.vocab_size, seq_len),
        train,
        val,
        digest,
        source,
        unit="token",
        baseline=baseline,
        notes=notes,
        test=test,
        tokenizer=streams.tokenizer,
    )


def make_key(files: Sequence[Path], settings: Sequence[object]) -> str:
    """Return a digest of what decides the streams: the files' contents, whatever their names, and the settings."""
    contents = []
    for file in files:
        with file.open("rb") as stream:
            hashed = sha256(SUFFIXES.get(file.suffix.lower(), "text").encode())
            while block := stream.read(1 << 20):
                hashed.update(block)
        contents.append(hashed.hexdigest())
    return sha256(json.dumps([sorted(contents), settings], default=str).encode()).hexdigest()[:32]


def select_evenly(streams: Streams, seq_len: int, val_bytes: int) -> Split:
    """Return windows spread evenly over the validation text, in memory: those that an evaluation reads."""
    windows: Samples = streams.open("val", seq_len)
    num_tokens = val_bytes * streams.num_tokens["val"] // max(1, streams.num_bytes["val"])
    count = min(max(1, num_tokens // seq_len), len(windows))
    index = torch.linspace(0, len(windows) - 1, count).round().long()
    if isinstance(windows, Split):
        return Split(windows.inputs[index], windows.targets[index], windows.token_bytes)
    return Split(*windows[index], windows.token_bytes)
