"""A corpus: the documents of files, without repeats, each as a whole in one split; read twice and never held in memory.

The first reading takes digests, which say what is a repeat and which split a document is in: neither names nor the order of
files nor line ends matter. The second gives the pieces of a split, in an order that the digests alone decide.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int8, UInt64

from research.contracts import contract
from research.data.splits import count_parts
from research.files.documents import DefectError, Format, SplitName, iter_documents
from research.files.lines import Defect
from research.files.sources import FIX, Counts, check_defects, show_progress

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
LEFT_OUT = -1  # in place of a split: an empty or repeated document, or none at all


class Reader(NamedTuple):
    """How documents are read from files."""

    format: Format
    field: tuple[str, ...]  # of a row: its columns or keys
    encoding: str


class Origin(NamedTuple):
    """Where files are from: the setting that names them, what to do about what cannot be read, and the split of each.

    Files without one share the splits that none is of.
    """

    key: str = "data.path"
    fix: str = FIX
    parts: Mapping[Path, SplitName] = MappingProxyType({})


@dataclass
class Corpus:
    """Which documents are in which split."""

    files: list[Path]  # in the order in which they are read
    reader: Reader
    splits: list[Int8[np.ndarray, "_"]]  # of each file: the number in SPLITS of each of its items, or LEFT_OUT
    stamps: list[tuple[int, int]]  # size and time of each file, by which a change is noticed
    num_bytes: int  # of all documents
    num_val_bytes: int  # of those for validation
    counts: Counts  # of what is left out
    cuts: tuple[int, int] | None = None  # of a single document: where its training text and its test text end

    @contract
    def count_documents(self, name: SplitName) -> int:
        """Return the number of documents in a split; parts of a single one count."""
        if self.cuts:
            start, end = self._get_range(name)
            return int(start < end)
        return sum(int((split == SPLITS.index(name)).sum()) for split in self.splits)

    def iter_documents(self, name: SplitName) -> Iterator[Iterable[bytes]]:
        """Yield the documents of a split, each as its pieces. Raise ValueError where a file has changed since it was read."""
        number = SPLITS.index(name)
        for file, split, stamp in zip(self.files, self.splits, self.stamps, strict=True):
            chosen = split >= 0 if self.cuts else split == number
            if not chosen.any():
                continue
            check_unchanged(file, stamp)
            for is_chosen, item in zip(chosen.tolist(), iter_documents(file, *self.reader), strict=False):
                if is_chosen:
                    if isinstance(item, Defect):
                        raise DefectError(item)
                    yield cut_pieces(item, *self._get_range(name)) if self.cuts else item
            check_unchanged(file, stamp)  # meanwhile

    def _get_range(self, name: SplitName) -> tuple[int, int]:
        """Return where a split of a single document begins and ends, in bytes."""
        assert self.cuts
        return {"train": (0, self.cuts[0]), "test": self.cuts, "val": (self.cuts[1], self.num_bytes)}[name]


@contract
def read_stamp(file: Path) -> tuple[int, int]:
    """Return size and time of the last change; zeros where the file is gone."""
    status = file.stat() if file.exists() else None
    return (status.st_size, status.st_mtime_ns) if status else (0, 0)


@contract
def check_unchanged(file: Path, stamp: tuple[int, int]) -> None:
    """Raise ValueError where a file is not what it was when it was read first."""
    if read_stamp(file) != stamp:
        raise ValueError(f"data.path: {file} has changed since it was read\nstart again")


class Digest(NamedTuple):
    """What the first reading learns of an item."""

    text: int = 0  # 8 bytes, of the text with "\\n" as line ends
    key: int = 0  # 8 bytes: documents are ranked by it
    size: int = 0  # bytes; 0 for what is blank, or no document


@contract
def digest_document(pieces: Iterable[bytes], advance: Callable[[int], None] = lambda size: None) -> Digest:
    """Return the digest of a document, and call `advance` as it is read. Raise DefectError where it turns out to be none."""
    text, key, size, is_blank = sha256(), sha256(b"split"), 0, True
    for piece in pieces:
        plain = piece.replace(b"\r\n", b"\n")
        text.update(plain)
        key.update(plain)
        size += len(piece)
        advance(len(piece))
        is_blank = is_blank and not piece.strip()
    short, ranked = (int.from_bytes(hashed.digest()[:8], "big") for hashed in (text, key))
    return Digest() if is_blank else Digest(short, ranked, size)


def digest_file(
    file: Path, reader: Reader, counts: Counts, defects: Counts, advance: Callable[[int], None]
) -> UInt64[np.ndarray, "items 3"]:
    """Return the digests of all items of a file, and count those that are no documents."""
    digests = array("Q")  # a row has 24 bytes, as a tuple it would have 200
    for item in iter_documents(file, *reader):
        digest = Digest()
        try:
            if isinstance(item, Defect):
                raise DefectError(item)
            digest = digest_document(item, advance)
            if not digest.size:
                counts.add("empty", str(file))
        except DefectError as error:
            defects.add(error.defect.kind, error.defect.where)
        digests.extend(digest)
    return np.frombuffer(digests, dtype=np.uint64).reshape(-1, 3)


def read_corpus(
    files: Sequence[Path],
    reader: Reader,
    fractions: tuple[float, float],
    skip_defects: bool,
    counts: Counts,
    known: list[UInt64[np.ndarray, "_"]] | None = None,  # digests of documents that count as repeats; this corpus adds its own
    origin: Origin = Origin(),  # noqa: B008
) -> Corpus:
    """Read all documents once and decide on their splits; `fractions` are those of val and test.

    A document in files of several splits is in the test, else in val.

    Raise ValueError where no text is left, and unless `skip_defects` for files and rows that cannot be read, all in one list.
    """
    defects, stamps = Counts(), [read_stamp(file) for file in files]
    with show_progress("reading", sum(size for size, _ in stamps)) as advance:
        digests = [digest_file(file, reader, counts, defects, advance) for file in files]
    check_defects(defects, skip_defects, counts, origin.fix, origin.key)
    ranks = {file: -SPLITS.index(origin.parts.get(file, "train")) for file in files}
    order = sorted(
        range(len(files)), key=lambda index: (ranks[files[index]], rank_file(digests[index]))
    )  # of repeats the first stays
    files, stamps, digests = [files[i] for i in order], [stamps[i] for i in order], [digests[i] for i in order]
    lengths, table = [len(part) for part in digests], np.concatenate(digests)
    del digests
    texts, keys, sizes = table.T
    kept = np.zeros(len(texts), dtype=bool)
    kept[np.unique(texts, return_index=True)[1]] = True  # the first of equal ones
    kept &= sizes > 0
    for digests_elsewhere in known or ():
        kept &= ~np.isin(texts, digests_elsewhere)
    if repeats := int((sizes > 0).sum() - kept.sum()):
        counts.add("repeated", str(files[0].parent), repeats)
    if not kept.any():
        where = files[0] if len(files) == 1 else files[0].parent
        raise ValueError(f"{origin.key}: {where} holds no text: {counts.describe() or 'it is empty'}")
    if known is not None:
        known.append(texts[kept])
    own = np.repeat([SPLITS.index(origin.parts[file]) if file in origin.parts else LEFT_OUT for file in files], lengths)
    splits = assign_splits(keys, kept & (own == LEFT_OUT), fractions)
    splits[kept & (own != LEFT_OUT)] = own[kept & (own != LEFT_OUT)]
    for name in ("train", "val") if origin.parts else ():
        if not (splits == SPLITS.index(name)).any():
            what = {"train": "all training documents are in another split, too", "val": "no document is left for validation"}[
                name
            ]
            raise ValueError(f"{origin.key}: {what}\ngive more text")
    parts = np.split(splits, np.cumsum(lengths)[:-1])
    val_sizes = sizes[splits == SPLITS.index("val")]
    corpus = Corpus(list(files), reader, parts, stamps, int(sizes[kept].sum()), int(val_sizes.sum()), counts)
    if kept.sum() == 1 and not origin.parts:
        corpus.cuts = find_cuts(corpus, fractions)
        corpus.num_val_bytes = corpus.num_bytes - corpus.cuts[1]
    return corpus


@contract
def assign_splits(
    keys: UInt64[np.ndarray, "items"], kept: np.ndarray, fractions: tuple[float, float]
) -> Int8[np.ndarray, "items"]:
    """Return the split of each item: the first by their keys are for validation, the next for the test, one each at least.

    A single item is for training. Raise ValueError for fewer items than splits.
    """
    ranked = np.flatnonzero(kept)[np.argsort(keys[kept], kind="stable")]
    counts, has_test = count_parts(len(ranked), fractions), fractions[1] > 0
    if len(ranked) == 2 and has_test:
        message = f"data.test_fraction={fractions[1]:g}: two documents cannot be split in three"
        raise ValueError(f"{message}\ngive more of them, or data.test_fraction=0")
    num_val = min(counts[0], max(0, len(ranked) - 1 - has_test))
    num_test = min(counts[1], max(0, len(ranked) - 1 - num_val))
    splits = np.full(len(keys), LEFT_OUT, dtype=np.int8)
    splits[ranked] = SPLITS.index("train")
    splits[ranked[:num_val]] = SPLITS.index("val")
    splits[ranked[num_val : num_val + num_test]] = SPLITS.index("test")
    return splits


def rank_file(digests: UInt64[np.ndarray, "items 3"]) -> tuple[bytes, bytes]:
    """Return what a file is ranked by: its document's key, of several a digest of all keys; then sizes, as line ends differ."""
    _, keys, sizes = digests.astype(">u8").T
    one, other = keys.tobytes(), sizes.tobytes()
    return (one, other) if len(keys) == 1 else (sha256(one).digest(), sha256(other).digest())


def find_cuts(corpus: Corpus, fractions: tuple[float, float]) -> tuple[int, int]:
    """Return where the training and the test text of a single document end: behind a line's end where there is one.

    Else they end before a letter. So they do where a line's end would leave no text for the test.
    """
    limits = [int(corpus.num_bytes * (1 - sum(fractions))), int(corpus.num_bytes * (1 - fractions[0]))]
    corpus.cuts = (0, 0)  # all of it is val
    cuts, position = [0, 0], 0
    for piece in next(corpus.iter_documents("val")):
        for index, limit in enumerate(limits):
            if end := piece.rfind(b"\n", 0, max(0, limit - position)) + 1:
                cuts[index] = position + end
            if 0 <= (start := limit - position) < len(piece):
                while piece[start] & 0xC0 == 0x80:  # within a letter of UTF-8
                    start -= 1
                limits[index] = position + start
        position += len(piece)
    train, test = (cut or limit for cut, limit in zip(cuts, limits, strict=True))
    return (limits[0], limits[1]) if fractions[1] and train == test else (train, test)


def cut_pieces(pieces: Iterable[bytes], start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from start to end of the pieces together."""
    position = 0
    for piece in pieces:
        if part := piece[max(0, start - position) : max(0, end - position)]:
            yield part
        position += len(piece)
        if position >= end:
            return
