"""Language modelling on text of your own: files, tables and JSONL, as windows of tokens whose targets are the next tokens."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Literal, cast

import numpy as np

from research.contracts import contract
from research.data.bins import Streams, Windows, prepare_streams
from research.data.corpus import Corpus, Origin, Reader, check_unchanged, read_corpus, read_stamp
from research.data.mixing import Mixture, share_block
from research.data.spec import Dataset, Samples, Split, Tokens
from research.data.splits import spread_evenly
from research.data.streams import VERSION
from research.data.tokenizers import Bytes, Tokenizer
from research.files.documents import SUFFIXES, Format, check_encoding
from research.files.labels import unigram_cross_entropy
from research.files.sources import Counts, find_files
from research.metrics import nats_to_bits
from research.ranges import ExistingPath, Fraction, OpenFraction, PositiveFloats, PositiveInt, check_settings
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
    weights: PositiveFloats | None = None,  # shares of the training samples of each path
) -> Dataset[Tokens]:
    """Return windows of `seq_len` tokens; the targets are the next tokens.

    Raise ValueError for a path without text, for files and rows that cannot be read, or less text than `seq_len`.
    """
    check_settings("data", text.__annotations__, locals())
    tokenizer, left_out = tokenizer or Bytes(), Counts()
    weights = None if weights is None else list(map(float, weights))  # of a configuration it is no list
    reader = Reader(format, (field,) if isinstance(field, str) else tuple(field), check_encoding(encoding))
    sources = find_sources(path, weights, pattern, left_out)
    settings = [VERSION, reader, val_fraction, test_fraction, defects, tokenizer.describe()]
    stamps = {file: read_stamp(file) for files in sources for file in files}
    key = make_key(sources, settings if weights is None else [*settings, weights])

    def check() -> None:  # what was read is what the key is of
        for file, stamp in stamps.items():
            check_unchanged(file, stamp)

    read = partial(read_sources, sources, reader, (val_fraction, test_fraction), defects == "skip", check)
    streams = prepare_streams(CACHE, key, read, weights or [1.0], tokenizer)
    return build_dataset(streams, seq_len, val_bytes, weights, path, left_out)


@contract
def read_sources(
    sources: Sequence[Sequence[Path]],
    reader: Reader,
    fractions: tuple[float, float],
    skips: bool,
    check: Callable[[], None],
    origin: Origin = Origin(),  # noqa: B008
) -> list[Corpus]:
    """Return the corpus of each source, a document in the first that has it. `check` is called once they are read."""
    known: list[np.ndarray] = []
    counts = Counts()  # of documents: the cache keeps them, as it keeps the documents
    corpora = [read_corpus(files, reader, fractions, skips, counts, known, origin) for files in sources]
    check()
    return corpora


@contract
def build_dataset(
    streams: Streams,
    seq_len: int,
    val_bytes: int,
    weights: list[float] | None,
    path: str | list[str] | None,
    left_out: Counts,
) -> Dataset[Tokens]:
    """Return the windows of streams; with `weights`, those of each path in their shares."""
    for kind, number in streams.left_out.items():
        left_out.add(kind, "", number)
    trains = [streams.open(name, seq_len) for name in streams.training]
    train = trains[0] if weights is None else Mixture(trains, share_block(weights))
    val, tokenizer = select_evenly(streams, seq_len, val_bytes), streams.tokenizer
    read_targets = val.targets.flatten().numpy().astype(tokenizer.dtype).tobytes()
    trained = b"".join(bytes.fromhex(streams.digests[name]) for name in streams.training)
    digest = sha256(trained + read_targets + (b"" if weights is None else repr(weights).encode())).hexdigest()
    order = [*streams.training, *(name for name in ("val", "test") if name in streams.num_tokens)]
    parts = " + ".join(f"{streams.num_documents[name]:,}" for name in order)
    mixed = [train.describe(cast(list[str], path))] if isinstance(train, Mixture) else []
    return Dataset(
        Tokens(tokenizer.vocab_size, seq_len, tokenizer.end),
        train,
        val,
        digest,
        source=f"{parts} documents, {sum(streams.num_bytes.values()) / 1e6:.1f} MB, {streams.tokenizer_name}",
        unit="token",
        baseline=compute_baseline(streams, val),
        notes=(*mixed, *streams.notes, *([f"left out: {left_out.describe()}"] if left_out.numbers else [])),
        test=streams.open("test", seq_len) if "test" in streams.num_tokens else None,
        tokenizer=tokenizer,
    )


def compute_baseline(streams: Streams, val: Split) -> dict[str, float]:
    """Return what the frequencies of tokens reach on the validation text, and gzip."""
    targets = val.targets.flatten().long()
    nats = unigram_cross_entropy(streams.count_tokens(), targets).item()
    num_bytes = len(targets) if val.token_bytes is None else int(val.token_bytes[targets].sum())
    bits = {"val/bpb unigram": nats_to_bits(nats * len(targets) / max(1, num_bytes)), "val/bpb gzip": streams.gzip_bits}
    return {"val/loss unigram": nats} | bits


def find_sources(
    path: str | list[str] | None, weights: Sequence[float] | None, pattern: str | list[str] | None, counts: Counts
) -> list[list[Path]]:
    """Return the files of each source: one of all paths, or with weights one a path, a file in the first that has it.

    Raise ValueError where there is not one weight a path, and where a path has no file of its own.
    """
    if weights is None:
        return [find_files(path, pattern, counts)]
    if path is None or isinstance(path, str) or not 1 < len(path) == len(weights):
        message = f"data.weights={list(weights)} are {len(weights)} weights, data.path={path} is no list of as many paths"
        raise ValueError(f"{message}\ngive a list of at least two paths, and a weight for each")
    share_block(weights)
    sources: list[list[Path]] = []
    for source in path:
        earlier = {file.resolve() for files in sources for file in files}
        sources.append([file for file in find_files(source, pattern, counts) if file.resolve() not in earlier])
        if not sources[-1]:
            raise ValueError(f"data.weights: all files of {source} are in a path before it\nleave it out")
    return sources


@contract
def make_key(sources: Sequence[Sequence[Path]], settings: Sequence[object]) -> str:
    """Return a digest of what decides the streams: the files' contents, whatever their names, and the settings."""
    contents: list[list[str]] = []
    for files in sources:
        contents.append([])
        for file in files:
            try:
                with file.open("rb") as stream:
                    kind = file.suffix.lower() if file.suffix.lower() in SUFFIXES else "text"  # .csv and .tsv are not alike
                    hashed = sha256(kind.encode() + file_digest(stream, "sha256").digest())
            except OSError as error:
                hashed = sha256(str(error).encode())  # `read_corpus` names it, among all others
            contents[-1].append(hashed.hexdigest())
    return hash_settings([*map(sorted, contents), settings])


@contract
def hash_settings(settings: Sequence[object]) -> str:
    """Return the name in the cache of what some settings decide."""
    return sha256(json.dumps(settings, default=str).encode()).hexdigest()[:32]


def select_evenly(streams: Streams, seq_len: int, val_bytes: int) -> Split:
    """Return windows spread evenly over the validation text, in memory: those that an evaluation reads."""
    windows: Samples = streams.open("val", seq_len)
    num_tokens = val_bytes * streams.num_tokens["val"] // max(1, streams.num_bytes["val"])
    count = min(max(1, num_tokens // seq_len), len(windows))
    index = spread_evenly(count, len(windows))
    documents = streams.number_documents("val", index * seq_len)
    if isinstance(windows, Split):
        return Windows(windows.inputs[index], windows.targets[index], windows.token_bytes, documents)
    return Windows(*windows[index], windows.token_bytes, documents)
