"""What a teacher says of samples, kept in a folder: its k likeliest classes at each target.

A sample is known by a digest of its inputs, in the precision that the teacher computes in. So neither the order of the samples
nor the number of processes matters. Each process appends to a file of its own, as fixed records of a key, a checksum,
log-probabilities (float16) and classes (int32). What a kill cut off is left out when it is read.
"""

import logging
import os
import uuid
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from research.composition.teacher import STORE_FILE
from research.contracts import contract
from research.data.spec import Dataset
from research.distill.divergence import TopK
from research.run_dir import make_folder, open_file, read_json, write_record

KEY_BYTES, CHECKSUM_BYTES = 16, 8
VERSION = 2  # in 1 a sample had one key in all precisions
VALUES = "log-probabilities of k classes and of the rest at temperature 1, float16: for any temperature"
log = logging.getLogger(__name__)


@contract
def describe_answers(teacher: str, data: Dataset[Any], top_k: int) -> dict[str, Any]:
    """Return whose answers a store keeps, and in which form. `teacher` is the digest of its weights."""
    facts = {"version": VERSION, "teacher": teacher, "data": data.digest, "top_k": top_k}
    return facts | {"targets": [*data.train.target_shape], "values": VALUES}


def check_store(folder: Path, facts: dict[str, Any], is_complete: bool) -> bool:
    """Return whether a store is there. Raise ValueError where it keeps other answers, or the folder is no store."""
    there = read_json(file := folder / STORE_FILE)
    if not there and (is_complete or file.exists() or (folder.is_dir() and any(folder.iterdir()))):
        message = f"objective.store={folder}: it has no {STORE_FILE} that can be read"
        raise ValueError(f"{message}\ngive an empty folder, or a new one")
    if different := [key for key, value in facts.items() if there and there.get(key) != value]:
        key = different[0]
        what = f"its {key} is {str(there.get(key))[:12]}, that of this run is {str(facts[key])[:12]}"
        raise ValueError(f"objective.store={folder}: {what}\ngive another folder, or what it was filled with")
    return bool(there)


@contract
class Store:
    """The answers of one teacher to the samples of one data set. Raise ValueError for a folder of another teacher or data.

    `facts` are those of `describe_answers`. `is_complete`: nothing may be missing, and nothing is written.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], is_complete: bool) -> None:
        if not check_store(folder, facts, is_complete):
            make_folder(folder)
            write_record(folder / STORE_FILE, facts)
        self.folder, self.is_complete, self.targets, self.top_k = folder, is_complete, facts["targets"], int(facts["top_k"])
        count = int(np.prod(self.targets))
        self.sizes = count * (self.top_k + 1) * 2, count * self.top_k * 4  # bytes of values and classes
        self.record_bytes = KEY_BYTES + CHECKSUM_BYTES + sum(self.sizes)
        self.files: dict[Path, int] = {}  # open ones, to read
        self.index: dict[bytes, tuple[Path, int]] = {}  # key -> file, offset
        self.own = folder / f"rows-{uuid.uuid4().hex}.bin"
        for path in sorted(folder.glob("rows-*.bin")):
            self.scan(path)

    def scan(self, path: Path) -> None:
        """Take the keys of a file into the index."""
        with open_file(path) as file:
            for offset in range(0, path.stat().st_size - self.record_bytes + 1, self.record_bytes):
                self.index[os.pread(file.fileno(), KEY_BYTES, offset)] = path, offset

    def look_up(self, x: Num[Tensor, "batch ..."], answer: Callable[[Tensor], TopK]) -> TopK:
        """Return what the teacher says of inputs. `answer` computes it for those at some indices, which are kept.

        Raise ValueError for a missing one where the store is complete.
        """
        precision = get_precision(x.device.type)
        keys = [blake2b(row.tobytes(), digest_size=KEY_BYTES, person=precision).digest() for row in x.cpu().numpy()]
        rows = {key: self.read(key) for key in keys}
        if missing := {key: index for index, key in enumerate(keys) if rows[key] is None}:
            if self.is_complete:
                name = precision.decode() or "float32"
                message = f"objective.store={self.folder} lacks a sample of this run in {name}, and objective.stored=true"
                raise ValueError(f"{message}\ngive objective.stored=false: the teacher adds what is missing")
            self.append([*missing], answer(torch.tensor([*missing.values()], device=x.device)))
            rows |= {key: self.read(key) for key in missing}
        pairs = [pair for key in keys if (pair := rows[key]) is not None]
        log_probs, classes = (torch.from_numpy(np.stack(part)).to(x.device) for part in zip(*pairs, strict=True))
        return TopK(log_probs.float(), classes)

    def read(self, key: bytes) -> tuple[Any, Any] | None:
        """Return the values and classes of a sample; None where there are none, or they are damaged."""
        if key not in self.index:
            return None
        path, offset = self.index[key]
        if path not in self.files:
            self.files[path] = os.open(path, os.O_RDONLY)
        record = os.pread(self.files[path], self.record_bytes, offset)
        checksum, content = record[KEY_BYTES : KEY_BYTES + CHECKSUM_BYTES], record[KEY_BYTES + CHECKSUM_BYTES :]
        if hash_content(content) != checksum:
            log.warning("objective.store: a sample in %s is damaged and left out", path)
            del self.index[key]
            return None
        values = np.frombuffer(content[: self.sizes[0]], np.float16).reshape(*self.targets, self.top_k + 1)
        return values, np.frombuffer(content[self.sizes[0] :], np.int32).reshape(*self.targets, self.top_k)

    def append(self, keys: Sequence[bytes], answers: TopK) -> None:
        """Write answers behind the others of this process."""
        parts = zip(answers.log_probs.half().cpu().numpy(), answers.classes.int().cpu().numpy(), strict=True)
        contents = [values.tobytes() + classes.tobytes() for values, classes in parts]
        with self.own.open("ab") as file:
            start = file.tell()
            file.write(b"".join(key + hash_content(c) + c for key, c in zip(keys, contents, strict=True)))
        for number, key in enumerate(keys):
            self.index[key] = self.own, start + number * self.record_bytes


def get_precision(device: str) -> bytes:
    """Return the name of the type that models compute in here; empty for float32."""
    return str(torch.get_autocast_dtype(device)).encode()[6:] if torch.is_autocast_enabled(device) else b""


def hash_content(content: bytes) -> bytes:
    """Return the checksum of a record."""
    return blake2b(content, digest_size=CHECKSUM_BYTES).digest()
