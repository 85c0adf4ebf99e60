"""W&B's files of runs, read back. W&B itself is imported where a file is read."""

import json
import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from research.contracts import contract

BLOCK, PIECE, MAGIC_BYTES = 32_768, struct.Struct("<IHB"), 7  # of its files: checksum, length and kind before each piece
PIECE_KINDS, LAST_KINDS = (1, 2, 3, 4), (1, 4)  # whole, first, middle, last


@contract
def list_files(folder: Path, run_id: str) -> list[Path]:
    """Return the files of a run, the oldest first."""
    return sorted(folder.glob(f"*run-*-{run_id}*/run-{run_id}.wandb"), key=lambda path: path.parent.name.partition("run-")[2])


@contract
def read_last_step(file: Path) -> int:
    """Return the step of the last row in a file; 0 without a row."""
    return int(max((row["step"] for row in read_rows([file]).values()), default=0))


@contract
def read_rows(files: Sequence[Path]) -> dict[int, dict[str, float]]:
    """Return the finite numbers of the rows by W&B's own count of them, without the times; of one that came again the last."""
    rows = {}
    for record in (record for file in files for record in read_file(file) if record.WhichOneof("record_type") == "history"):
        row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        own = {key: value for key, value in row.items() if key != "seconds" and not key.startswith("_")}
        rows[int(row["_step"])] = {key: float(value) for key, value in own.items() if math.isfinite(value)}
    return rows


@contract
def read_file(path: Path) -> Iterator[Any]:
    """Yield the records of one of W&B's files, which is a log as LevelDB's: pieces in blocks. A torn one is its end."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = path.read_bytes(), MAGIC_BYTES, b""
    while position + PIECE.size <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE.size:
            position += left  # padding
            continue
        _, length, kind = PIECE.unpack_from(content, position)
        piece = content[position + PIECE.size : position + PIECE.size + length]
        if kind not in PIECE_KINDS or len(piece) < length:
            return
        position, whole = position + PIECE.size + length, whole + piece
        if kind in LAST_KINDS:
            yield Record.FromString(whole)
            whole = b""
