"""Local text as bytes: repeated files are removed, files are split before packing, and the leak is measured."""

import gzip
import sysconfig
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from research.data.spec import Dataset, Split, Tokens, unigram_cross_entropy
from research.metrics import nats_to_bits
from research.ranges import ExistingPath, OpenFraction, PositiveInt, check_settings
from research.run_dir import expand_path

# Of the standard library: tests repeat its code, and packages of others differ between machines.
SKIPPED_FOLDERS = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages", "__pycache__"}
END_BYTE = 0  # stands between two documents: generated text ends there
LONG_LINE = 40  # bytes; shorter lines repeat by chance


def find_files(path: str | None, pattern: str) -> list[Path]:
    """Return the files below `path`, or the standard library's sources, sorted, as disks are not. Raise ValueError for none."""
    root = expand_path(path or sysconfig.get_paths()["stdlib"]).resolve()
    if not root.exists():
        raise ValueError(f"data.path={path}: there is no file or folder {root}; give one that exists")
    files = [root] if root.is_file() else sorted(f for f in root.rglob(pattern) if f.is_file())
    if path is None:
        files = [f for f in files if not SKIPPED_FOLDERS & set(f.relative_to(root).parts)]
    if not files:
        raise ValueError(f"data.pattern={pattern}: no file below {root} matches")
    return files


def read_documents(files: list[Path]) -> list[bytes]:
    """Return the contents of the distinct, non-empty files; raise ValueError for a file that is not UTF-8, or for no text."""
    documents: dict[bytes, bytes] = {}
    for file in files:
        content = file.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            where = f"{file} is not UTF-8 (byte {error.start})"
            raise ValueError(f"data.path: {where}; convert it or narrow data.pattern") from None
        if content.strip():
            documents.setdefault(sha256(content).digest(), content)
    if not documents:
        raise ValueError(f"data.path: {files[0] if len(files) == 1 else files[0].parent} holds no text: every file is empty")
    return list(documents.values())


def split_files(documents: list[bytes], val_fraction: float) -> tuple[list[bytes], list[bytes]]:
    """Return training and validation documents, chosen by their digest; a single document is cut at a line's end."""
    if len(documents) == 1:
        text, limit = documents[0], int(len(documents[0]) * (1 - val_fraction))
        cut = text.rfind(b"\n", 0, limit) + 1 or limit
        return [text[:cut]], [text[cut:]]
    # By digest: the split does not depend on the names or the order of the files.
    ranked = sorted(documents, key=lambda text: sha256(b"split" + text).digest())
    cut = min(max(1, round(len(ranked) * val_fraction)), len(ranked) - 1)
    return ranked[cut:], ranked[:cut]


def measure_leak(train: list[bytes], val: list[bytes]) -> float:
    """Return the share of the long lines of `val` that are also in `train`: memory alone can answer them."""
    train_lines = {line for text in train for line in text.splitlines() if len(line) > LONG_LINE}
    lines = [line for text in val for line in text.splitlines() if len(line) > LONG_LINE]
    return sum(line in train_lines for line in lines) / max(1, len(lines))


def pack_windows(documents: list[bytes], seq_len: int, name: str) -> tuple[UInt8[Tensor, "bytes"], Split]:
    """Return all documents as one stream with zero bytes between, and its windows of seq_len inputs and targets.

    Windows of seq_len + 1 bytes share one byte with the next. Raise ValueError where the stream is too short for one.
    """
    stream = torch.frombuffer(bytearray(bytes([END_BYTE]).join(documents)), dtype=torch.uint8)
    if len(stream) <= seq_len:
        why = f"the {name} split has {len(stream)} bytes"
        raise ValueError(f"data.seq_len={seq_len} is too long: {why}; give a smaller one or more text")
    windows = stream.unfold(0, seq_len + 1, seq_len)  # a view: a window is copied when it is drawn
    return stream, Split(windows[:, :-1], windows[:, 1:])


def text(
    path: ExistingPath | None = None,  # None: the sources of this Python's standard library
    pattern: str = "*.py",
    seq_len: PositiveInt = 256,
    val_fraction: OpenFraction = 0.1,
    val_bytes: PositiveInt = 65_536,  # bytes of the validation text that an evaluation reads
) -> Dataset[Tokens]:
    """Return windows of `seq_len` bytes; the targets are the next bytes.

    Raise ValueError for a path without text, a file that is not UTF-8, or less text than `seq_len`.
    """
    check_settings("data", text.__annotations__, locals())
    train_files, val_files = split_files(read_documents(find_files(path, pattern)), val_fraction)
    stream, train = pack_windows(train_files, seq_len, "training")
    val_stream, val = pack_windows(val_files, seq_len, "validation")
    # An evaluation reads windows spread evenly over the validation text.
    indices = torch.linspace(0, len(val) - 1, min(max(1, val_bytes // seq_len), len(val))).round().long()
    val = Split(val.inputs[indices], val.targets[indices])
    targets = val.targets.flatten()
    digest = sha256(sha256(stream.numpy().tobytes()).digest() + targets.numpy().tobytes()).hexdigest()
    source = f"{len(train_files)} + {len(val_files)} files, {(len(stream) + len(val_stream)) / 1e6:.1f} MB"
    loss = unigram_cross_entropy(stream.long(), targets.long(), 256).item()
    zipped = len(gzip.compress(b"\0".join(val_files), 9, mtime=0)) * 8 / len(val_stream)
    baseline = {"val/loss unigram": loss, "val/bpb unigram": nats_to_bits(loss), "val/bpb gzip": zipped}
    leak = f"{measure_leak(train_files, val_files):.1%} of the validation lines over {LONG_LINE} bytes"
    notes = (f"{leak} are also in the training text",)
    return Dataset(Tokens(256, seq_len), train, val, digest, source, unit="token", baseline=baseline, notes=notes)
