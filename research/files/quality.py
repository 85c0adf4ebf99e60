"""What is wrong with a split in two parts: lines and near copies of the validation text that are also in the training text."""

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import UInt64

from research.contracts import contract
from research.files.documents import SplitName

LONG_LINE = 40  # bytes; shorter lines repeat by chance
MAX_LINES = 1_000_000  # of the validation text that are looked for; of more of them an even sample
MAX_ZIPPED = 1 << 26  # bytes of the validation text that gzip compresses
SHINGLE, SKETCH = 8, 64  # bytes; the smallest digests of shingles that stand for a document
SKETCHED = 1 << 14  # bytes of a document, from its start
MAX_SKETCHES = {"val": 2_000, "train": 20_000}  # documents that are compared
NEAR = 0.8  # of the sketch in common: a near copy


@contract
class Quality:
    """Looks at the pieces of val and then of train as they pass."""

    def __init__(self, num_val_bytes: int) -> None:
        self.lines = Counter[int]()  # of the validation text, by hash
        self.leaked = set[int]()
        self.every = 1 + num_val_bytes // (MAX_LINES * LONG_LINE)  # one line in so many is looked for
        self.gzip, self.num_zipped, self.zipped_size = zlib.compressobj(9, wbits=31), 0, 0
        self.val_sketches: list[UInt64[np.ndarray, sketch]] = []
        self.documents_with: dict[int, list[int]] = {}  # digest of a shingle -> the val documents that have it
        self.near, self.num_train = set[int](), 0

    def watch(self, name: SplitName, document: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the pieces of a document. All of val come before the first of train."""
        if name == "val" and self.num_zipped:
            self._compress(b"\0")
        for number, piece in enumerate(document):
            if name != "test":
                self._watch_lines(name, piece)
                if number == 0:
                    self._watch_sketch(name, piece)
            if name == "val":
                self._compress(piece)
            yield piece

    def _watch_lines(self, name: SplitName, piece: bytes) -> None:
        lines = (line for line in piece.splitlines() if len(line) > LONG_LINE)
        numbers = [hash(line) for line in lines if self.every == 1 or zlib.crc32(line) % self.every == 0]
        if name == "val":
            self.lines.update(numbers)
        else:
            self.leaked |= self.lines.keys() & numbers

    def _watch_sketch(self, name: SplitName, piece: bytes) -> None:
        if name == "val" and len(self.val_sketches) < MAX_SKETCHES["val"]:
            for shingle in (sketch := sketch_document(piece)).tolist():
                self.documents_with.setdefault(shingle, []).append(len(self.val_sketches))
            self.val_sketches.append(sketch)
        elif name == "train" and self.num_train < MAX_SKETCHES["train"]:
            self.num_train += 1
            common = Counter(
                number for shingle in sketch_document(piece).tolist() for number in self.documents_with.get(shingle, ())
            )
            self.near |= {number for number, count in common.items() if count >= NEAR * len(self.val_sketches[number])}

    def _compress(self, content: bytes) -> None:
        if self.num_zipped < MAX_ZIPPED:
            self.num_zipped += len(content)
            self.zipped_size += len(self.gzip.compress(content))

    def compute_gzip_bits(self) -> float:
        """Return the bits per byte of the validation text in gzip; call it once, at the end."""
        return (self.zipped_size + len(self.gzip.flush())) * 8 / max(1, self.num_zipped)

    def describe(self) -> list[str]:
        """Return a sentence for each fact."""
        share = sum(self.lines[number] for number in self.leaked) / max(1, self.lines.total())
        notes = [f"{share:.1%} of the validation lines over {LONG_LINE} bytes are also in the training text"]
        is_part = len(self.val_sketches) == MAX_SKETCHES["val"] or self.num_train == MAX_SKETCHES["train"]
        if self.near or is_part:
            train = f"the first {self.num_train:,} training documents" if is_part else "training documents"
            notes.append(f"{len(self.near):,} of {len(self.val_sketches):,} validation documents are near copies of {train}")
        return notes


def sketch_document(piece: bytes) -> UInt64[np.ndarray, "sketch"]:
    """Return the smallest digests of the shingles at a document's start (bottom-k sketch, Broder 1997); none of a short one."""
    content = np.frombuffer(piece[:SKETCHED], dtype=np.uint8)
    if len(content) < SHINGLE * 4:
        return np.empty(0, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(content, SHINGLE)
    words = np.ascontiguousarray(windows).view("<u8")[:, 0]
    digests = np.unique(words * np.uint64(0x9E3779B97F4A7C15) ^ (words >> np.uint64(29)))
    digests = np.unique(digests * np.uint64(0xBF58476D1CE4E5B9))
    return digests[:SKETCH]
