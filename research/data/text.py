"""Local text as bytes: split by file before packing, repeated files removed, the leak between the splits told."""

import gzip
import sysconfig
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from research.data.spec import Dataset, Split, Tokens, unigram_cross_entropy
from research.metrics import nats_to_bits
from research.ranges import ExistingPath, OpenFraction, PositiveInt

SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
LONG_LINE = 40  # bytes; shorter lines repeat by chance


def find_files(path: str | None, pattern: str) -> list[Path]:
    """The files below `path`, or the standard library's sources; sorted, so the corpus does not depend on the disk."""
    root = Path(path or sysconfig.get_paths()["stdlib"]).expanduser().resolve()
    if not root.exists():
        raise ValueError(f"data.path={path}: there is no file or folder {root}")
    files = [root] if root.is_file() else sorted(f for f in root.rglob(pattern) if f.is_file())
    if path is None:
        files = [f for f in files if not SKIPPED_FOLDERS & set(f.relative_to(root).parts)]
    if not files:
        raise ValueError(f"data.pattern={pattern}: no file below {root} matches")
    return files


def read_documents(files: list[Path]) -> list[bytes]:
    """The distinct, non-empty files that are UTF-8; the first one that is not is an error."""
    documents: dict[bytes, bytes] = {}
    for file in files:
        content = file.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"data.path: {file} is not UTF-8 (byte {error.start}); convert it or narrow data.pattern"
            ) from None
        if content.strip():
            documents.setdefault(sha256(content).digest(), content)
    if not documents:
        raise ValueError(f"data.path: {files[0] if len(files) == 1 else files[0].parent} holds no text: every file is empty")
    return list(documents.values())


def split_files(documents: list[bytes], val_fraction: float) -> tuple[list[bytes], list[bytes]]:
    """Whole files by their digest; a single file is cut in two at a line's end near the place."""
    if len(documents) == 1:
        text = documents[0]
        cut = text.rfind(b"\n", 0, int(len(text) * (1 - val_fraction))) + 1 or int(len(text) * (1 - val_fraction))
        return [text[:cut]], [text[cut:]]
    ranked = sorted(documents, key=lambda text: sha256(b"split" + text).digest())
    cut = min(max(1, round(len(ranked) * val_fraction)), len(ranked) - 1)
    return ranked[cut:], ranked[:cut]


def measure_leak(train: list[bytes], val: list[bytes]) -> float:
    """Share of the long lines of `val` that also stand in `train`: what memory alone can answer."""
    seen = {line for text in train for line in text.splitlines() if len(line) > LONG_LINE}
    lines = [line for text in val for line in text.splitlines() if len(line) > LONG_LINE]
    return sum(line in seen for line in lines) / max(1, len(lines))


def pack_windows(documents: list[bytes], seq_len: int, name: str) -> tuple[UInt8[Tensor, "bytes"], Split]:
    """All documents one after the other, a zero byte between two, in windows of length + 1 that share one byte."""
    stream = torch.frombuffer(bytearray(b"\0".join(documents)), dtype=torch.uint8)
    if len(stream) <= seq_len:
        raise ValueError(f"data.seq_len={seq_len} is too long: the {name} split has {len(stream)} bytes")
    windows = stream.unfold(0, seq_len + 1, seq_len)  # a view: no window is copied before it is drawn
    return stream, Split(windows[:, :-1], windows[:, 1:])


def text(
    path: ExistingPath | None = None,  # None: the sources of this Python's standard library
    pattern: str = "*.py",
    seq_len: PositiveInt = 256,
    val_fraction: OpenFraction = 0.1,
    val_bytes: PositiveInt = 65_536,  # how much of the held-back text an evaluation reads
) -> Dataset[Tokens]:
    """Windows of `length` bytes, the targets one byte on.

    Raises ValueError for a path that does not exist, holds no text, or a file that is not UTF-8.
    """
    files = find_files(path, pattern)
    train_files, val_files = split_files(read_documents(files), val_fraction)
    stream, train = pack_windows(train_files, seq_len, "training")
    held, val = pack_windows(val_files, seq_len, "validation")
    windows = min(max(1, val_bytes // seq_len), len(val))
    spread = torch.linspace(0, len(val) - 1, windows).round().long()
    val = Split(val.inputs[spread], val.targets[spread])
    judged = val.targets.flatten()
    loss = unigram_cross_entropy(stream.long(), judged.long(), 256).item()
    zipped = len(gzip.compress(b"\0".join(val_files), 9, mtime=0)) * 8 / len(held)
    digest = sha256(sha256(stream.numpy().tobytes()).digest() + judged.numpy().tobytes()).hexdigest()
    leak = measure_leak(train_files, val_files)
    return Dataset(
        shape=Tokens(vocab_size=256, seq_len=seq_len),
        train=train,
        val=val,
        digest=digest,
        source=f"{len(train_files)} + {len(val_files)} files, {(len(stream) + len(held)) / 1e6:.1f} MB",
        unit="token",
        baseline={"val/loss unigram": loss, "val/bpb unigram": nats_to_bits(loss), "val/bpb gzip": zipped},
        notes=(f"{leak:.1%} of the held-back lines over {LONG_LINE} bytes also stand in the training text",),
    )
