"""A corpus written as streams of tokens, in fixed memory; what was killed goes on where it came to."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from research.data.corpus import Corpus, SplitName
from research.data.quality import Quality
from research.data.tokenizers import FILE, Tokenizer, load_tokenizer
from research.run_dir import make_folder, read_json, sync, write_record

VERSION = 1  # of the streams: another one makes them anew
BATCH = 64  # pieces that are tokenized together, by as many threads as the tokenizer has
PROGRESS_EVERY = 1 << 26  # bytes of text between two notes of how far it came
META, PROGRESS = "meta.json", "progress.json"
Pieces = Iterator[tuple[bool, bytes]]  # whether a new document begins, not the first; its text


def write_streams(draft: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Tokenize a corpus into a folder; continue what an earlier process wrote there."""
    make_folder(draft)
    if (draft / FILE).exists():
        tokenizer = load_tokenizer(draft)
    else:
        tokenizer.train(chain.from_iterable(corpus.iter_documents("train")))
        tokenizer.save(draft)
    names: list[SplitName] = [name for name in ("val", "test", "train") if corpus.count_documents(name)]
    quality = Quality(corpus.num_bytes)
    meta: dict[str, Any] = {"version": VERSION, "left_out": corpus.counts.describe()}
    for name in names:
        documents = (quality.watch(name, document) for document in corpus.iter_documents(name))
        facts = write_stream(draft / f"{name}.bin", documents, tokenizer, name)
        for key, value in facts.items():
            meta.setdefault(key, {})[name] = value
    meta |= {"gzip_bits": quality.compute_gzip_bits(), "notes": quality.describe(), "tokenizer_name": tokenizer.name}
    write_record(draft / META, meta)


def write_stream(file: Path, documents: Iterable[Iterable[bytes]], tokenizer: Tokenizer, name: str) -> dict[str, Any]:
    """Write the tokens of documents with an end between two; return how many there are, and the digest of the stream."""
    progress_file = file.with_suffix(".json")
    progress = {"pieces": 0, "tokens": 0, "bytes": 0, "documents": 0} | read_json(progress_file)
    size, noted = tokenizer.dtype.itemsize, progress["bytes"]
    pieces = iter_pieces(documents)
    with file.open("r+b" if file.exists() else "w+b") as stream:
        stream.truncate(progress["tokens"] * size)
        stream.seek(0, 2)
        skip(pieces, progress["pieces"])
        while batch := list(islice(pieces, BATCH)):
            for (begins, _), tokens in zip(batch, tokenizer.encode([piece for _, piece in batch]), strict=True):
                ends = np.array([tokenizer.end] * begins, dtype=tokenizer.dtype)
                stream.write(ends.tobytes() + tokens.tobytes())
                progress["tokens"] += len(ends) + len(tokens)
                progress["documents"] += begins
            progress["pieces"] += len(batch)
            progress["bytes"] += sum(begins + len(piece) for begins, piece in batch)
            if progress["bytes"] - noted >= PROGRESS_EVERY:
                noted = progress["bytes"]
                stream.flush()
                write_record(progress_file, progress)
        stream.flush()
        stream.seek(0)
        digest = sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    sync(file)
    write_record(progress_file, progress)
    counts = {"num_tokens": progress["tokens"], "num_bytes": progress["bytes"], "num_documents": progress["documents"] + 1}
    return counts | {"digests": digest.hexdigest()}


def iter_pieces(documents: Iterable[Iterable[bytes]]) -> Pieces:
    """Yield each piece, and whether an end stands before it."""
    for number, document in enumerate(documents):
        for position, piece in enumerate(document):
            yield number > 0 and position == 0, piece


def skip(pieces: Pieces, count: int) -> None:
    """Read so many pieces and do nothing with them."""
    for _ in islice(pieces, count):
        pass
