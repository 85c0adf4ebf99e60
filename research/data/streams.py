"""A corpus written as streams of tokens, in fixed memory; what was killed goes on where it came to."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import file_digest
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from research.contracts import contract
from research.data.corpus import Corpus
from research.data.tokenizers import FILE, TRAINING_BYTES, Tokenizer, hash_tokenizer, load_tokenizer, take_bytes
from research.files.documents import SplitName
from research.files.quality import Quality
from research.files.sources import show_progress
from research.run_dir import make_folder, read_json, sync, write_record

VERSION = 3  # of the streams: another one makes them anew
BATCH = 1 << 21  # bytes that are tokenized together, by as many threads as there are processors
PROGRESS_EVERY = 1 << 26  # bytes of text between two notes of how far it came
META = "meta.json"
Pieces = Iterator[tuple[bool, bytes]]  # whether a new document begins, not the first; its text


@contract
def write_streams(draft: Path, corpora: Sequence[Corpus], shares: Sequence[float], tokenizer: Tokenizer) -> None:
    """Tokenize corpora into a folder; continue what an earlier process wrote there.

    Each has a training stream of its own; `shares` are of the text that the tokenizer learns from.
    """
    make_folder(draft)
    if (draft / FILE).exists():
        name, tokenizer = tokenizer.name, load_tokenizer(draft)
        tokenizer.name = name
    else:
        texts = [chain.from_iterable(corpus.iter_documents("train")) for corpus in corpora]
        limits = [round(TRAINING_BYTES * share / sum(shares)) for share in shares]
        tokenizer.train(chain.from_iterable(map(take_bytes, texts, limits)))
        tokenizer.save(draft)
    quality = Quality(sum(corpus.num_val_bytes for corpus in corpora))
    meta: dict[str, Any] = {"version": VERSION, "left_out": corpora[0].counts.numbers}
    with show_progress("tokens", sum(corpus.num_bytes for corpus in corpora)) as advance:
        for stream, name, parts in plan_streams(corpora):
            documents = (quality.watch(name, document) for corpus in parts for document in corpus.iter_documents(name))
            facts = write_stream(draft / f"{stream}.bin", documents, tokenizer, advance)
            for key, value in facts.items():
                meta.setdefault(key, {})[stream] = value
    meta |= {"gzip_bits": quality.compute_gzip_bits(), "notes": quality.describe(), "tokenizer_name": tokenizer.name}
    meta["tokenizer_digest"] = hash_tokenizer(draft)
    write_record(draft / META, meta)


def plan_streams(corpora: Sequence[Corpus]) -> Iterator[tuple[str, SplitName, Sequence[Corpus]]]:
    """Yield each stream with the split that it is of and the corpora that it holds: validation first, for `Quality`."""
    for name in ("val", "test"):
        if parts := [corpus for corpus in corpora if corpus.count_documents(name)]:
            yield name, name, parts
    for number, corpus in enumerate(corpora):
        if corpus.count_documents("train"):
            yield f"train-{number}" if len(corpora) > 1 else "train", "train", [corpus]


def write_stream(
    file: Path, documents: Iterable[Iterable[bytes]], tokenizer: Tokenizer, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Write the tokens of documents with an end between two; return how many there are, and the digest of the stream."""
    progress_file = file.with_suffix(".json")
    size, written = tokenizer.dtype.itemsize, file.stat().st_size if file.exists() else 0
    start, noted = {"pieces": 0, "tokens": 0, "bytes": 0, "documents": 0}, read_json(progress_file)
    progress = start | noted if noted.get("tokens", 0) * size <= written else start  # else a power cut has shortened it
    saved = progress["bytes"]
    pieces = iter_pieces(documents)
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.truncate(progress["tokens"] * size)
        stream.seek(0, 2)
        skip(pieces, progress["pieces"])
        advance(progress["bytes"])
        while batch := take_batch(pieces):
            for (begins, _), tokens in zip(batch, tokenizer.encode([piece for _, piece in batch]), strict=True):
                ends = np.array([tokenizer.end] * begins, dtype=tokenizer.dtype)
                stream.write(ends.tobytes() + tokens.tobytes())
                progress["tokens"] += len(ends) + len(tokens)
                progress["documents"] += begins
            progress["pieces"] += len(batch)
            num_bytes = sum(begins + len(piece) for begins, piece in batch)
            progress["bytes"] += num_bytes
            advance(num_bytes)
            if progress["bytes"] - saved >= PROGRESS_EVERY:
                saved = progress["bytes"]
                stream.flush()
                os.fsync(stream.fileno())
                write_record(progress_file, progress)
        stream.flush()
        stream.seek(0)
        digest = file_digest(stream, "sha256")
    sync(file)
    write_record(progress_file, progress)
    counts = {"num_tokens": progress["tokens"], "num_bytes": progress["bytes"], "num_documents": progress["documents"] + 1}
    return counts | {"digests": digest.hexdigest()}


@contract
def take_batch(pieces: Pieces) -> list[tuple[bool, bytes]]:
    """Return the next pieces, of BATCH bytes or a little more."""
    batch, size = [], 0
    for begins, piece in pieces:
        batch.append((begins, piece))
        size += len(piece)
        if size >= BATCH:
            break
    return batch


@contract
def iter_pieces(documents: Iterable[Iterable[bytes]]) -> Pieces:
    """Yield each piece, and whether an end stands before it."""
    for number, document in enumerate(documents):
        for position, piece in enumerate(document):
            yield number > 0 and position == 0, piece


@contract
def skip(pieces: Pieces, count: int) -> None:
    """Read so many pieces and do nothing with them."""
    for _ in islice(pieces, count):
        pass
