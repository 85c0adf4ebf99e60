"""The journal of a study: Optuna's records, one a line, each with a checksum.

Damage is named by its line. A line in which one character has changed is put right. Of any other the record is lost, and
what others depend on takes its place: their trials and their study.
"""

import errno
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from research.contracts import contract
from research.run_dir import CHECKSUM_KEY, add_checksum, parse_json
from research.tracking.storage import FileLock
from research.tracking.study_spec import read_study_spec

log = logging.getLogger(__name__)
CREATE_STUDY, SET_STUDY_ATTR, CREATE_TRIAL = 0, 2, 4  # Optuna's operations
KEYS = {  # operation -> what its record holds at least, as Optuna reads it
    CREATE_STUDY: {"study_name", "directions"},
    1: {"study_id"},
    SET_STUDY_ATTR: {"study_id", "user_attr"},
    3: {"study_id", "system_attr"},
    CREATE_TRIAL: {"study_id", "datetime_start"},
    5: {"trial_id", "param_name", "param_value_internal", "distribution"},
    6: {"trial_id", "state", "values"},
    7: {"trial_id", "step", "intermediate_value"},
    8: {"trial_id", "user_attr"},
    9: {"trial_id", "system_attr"},
    10: set[str](),
}
# Of no study: no effect.
NO_RECORD: dict[str, Any] = {"op_code": SET_STUDY_ATTR, "worker_id": "", "study_id": -1, "user_attr": {"": None}}
DIRECTIONS = {"minimize": 1, "maximize": 2}
JOINT = re.compile(rb'(?<="\}).(?=\{"op_code)', re.DOTALL)  # between two records: an end of line that has changed
MAX_MENDED_BYTES = 4000  # of one line: each of its characters is tried


@contract
class Journal:
    """A journal file, as Optuna's JournalStorage calls it. Processes append to it one after the other."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, get_journal_lock(path)
        self.offset, self.num_lines = 0, 0  # what has been read of the file
        self.records, self.num_dropped = list[dict[str, Any]](), 0  # that Optuna may ask for again, and those before
        self.num_trials, self.study_id = 0, 0  # that have been created, and the study of the last one
        self.workers = set[bytes]()  # whose records have checksums: one without is damaged
        self.created = set[bytes]()  # lines that have created trials
        path.touch()

    def append_logs(self, logs: Sequence[dict[str, Any]]) -> None:
        """Append records, all or none: a part that a full disk has taken is cut off again. Raise OSError where it is full."""
        content = b"".join(map(encode, logs))
        with self.lock, self.path.open("ab+", buffering=0) as file:
            end = find_end(file)
            file.truncate(end)  # what a process has left that was killed here
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(end)
                raise
            os.fsync(file.fileno())

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the records from a number on. Raise ValueError where the study itself is lost, naming the line."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            *lines, incomplete = file.read().split(b"\n")  # the last one may still be being written
            self.offset = file.tell() - len(incomplete)
        self.workers |= {find_worker(line) for line in lines if CHECKSUM_KEY.encode() in line} - {b""}
        while lines:
            self.num_lines += 1
            line = lines.pop(0)
            record = self.parse(line)
            if not record and (joint := JOINT.search(line)):
                log.warning("%s, line %d is damaged: its end has changed, and is put right", self.path, self.num_lines)
                lines.insert(0, line[joint.end() :])
                self.num_lines -= 1
                line = line[: joint.start()]
            record = record or self.parse(line) or self.recover(line, lines)
            if record["op_code"] == CREATE_TRIAL and record["datetime_start"] and line in self.created:
                log.warning("%s, line %d is a copy of an earlier one, and left out", self.path, self.num_lines)
                record = NO_RECORD
            self.records.append(record)
            if record["op_code"] == CREATE_TRIAL:
                self.created.add(line)
                self.num_trials, self.study_id = self.num_trials + 1, record["study_id"]
        del self.records[: log_number_from - self.num_dropped]
        self.num_dropped = log_number_from
        yield from list(self.records)

    def parse(self, line: bytes) -> dict[str, Any] | None:
        """Return the record of a line; None for a damaged one, as one without the checksum that its worker writes."""
        is_stripped = CHECKSUM_KEY.encode() not in line and find_worker(line) in self.workers
        return None if is_stripped else parse(line, self.num_trials)

    def recover(self, line: bytes, later: Sequence[bytes]) -> dict[str, Any]:
        """Return the record of a damaged line, or what stands for it, and warn. Raise ValueError where the study is lost."""
        name = f"{self.path}, line {self.num_lines}"
        if record := mend(line, self.num_trials):
            log.warning("%s is damaged: one character has changed, and is put right", name)
            return record
        operation = re.search(rb'"op_code": ?(\d+)\D', line)
        if self.num_lines == 1 or (operation and int(operation[1]) == CREATE_STUDY):
            spec = read_study_spec(self.path.parent)
            if self.num_lines > 1 or not spec.study or not spec.directions:
                raise ValueError(f"{name} is damaged, and with it the study; give another hydra.sweeper.study_name")
            log.warning("%s is damaged: the study's name and directions are taken from study.json", name)
            directions = [DIRECTIONS[direction] for direction in spec.directions]
            return {"op_code": CREATE_STUDY, "worker_id": "", "study_name": spec.study, "directions": directions}
        log.warning("%s is damaged and left out; give the sweep's command again: trials without a result go on", name)
        if creates_trial(operation and int(operation[1]), later, self.num_trials):
            return {"op_code": CREATE_TRIAL, "worker_id": "", "study_id": self.study_id, "datetime_start": None}
        return NO_RECORD


@contract
def encode(record: dict[str, Any]) -> bytes:
    """Return a record as a line, with its checksum."""
    plain = json.loads(json.dumps(record))  # keys are texts from here on, as they will be read
    return json.dumps(add_checksum(plain), separators=(",", ":")).encode() + b"\n"


@contract
def parse(line: bytes, num_trials: int) -> dict[str, Any] | None:
    """Return the record of a line; None for a damaged one. Optuna's own lines have no checksum, but must make sense."""
    try:
        record = parse_json(line.decode())
    except ValueError:
        return None
    operation, trial = record.get("op_code"), record.get("trial_id", 0)
    if type(operation) is not int or not KEYS.get(operation, {""}) | {"worker_id"} <= record.keys():
        return None
    return record if trial == 0 or (isinstance(trial, int) and 0 <= trial < num_trials) else None


def mend(line: bytes, num_trials: int) -> dict[str, Any] | None:
    """Return the record of a line with one wrong byte (a flipped bit, another digit); None for any other damage.

    A checksum finds the one byte that fits: another one would have to have the same 32 bits by chance.
    """
    if len(line) > MAX_MENDED_BYTES:
        return None
    for index, byte in enumerate(line):
        for other in [byte ^ (1 << bit) for bit in range(8)] + [*b"0123456789"] * (byte in b"0123456789"):
            candidate = line[:index] + bytes([other]) + line[index + 1 :]
            if has_checksum(candidate) and (record := parse(candidate, num_trials)):
                return record
    return None


def has_checksum(line: bytes) -> bool:
    return f'"{CHECKSUM_KEY}":"'.encode() in line


def find_worker(line: bytes) -> bytes:
    """Return who has written a line; nothing where it does not say."""
    match = re.search(rb'"worker_id": ?"([^"]*)"', line)
    return match[1] if match else b""


def creates_trial(operation: int | None, later: Sequence[bytes], num_trials: int) -> bool:
    """Return True if a damaged line has created a trial: by its operation, else where a later line is about one more."""
    if operation in KEYS:
        return operation == CREATE_TRIAL
    for line in later:
        record = parse(line, num_trials + 1)
        if record and record["op_code"] == CREATE_TRIAL:
            return False
        if record and record.get("trial_id") == num_trials:
            return True
    return False


def get_journal_lock(journal: Path) -> FileLock:
    """Return the lock of those who write to a journal."""
    return FileLock(journal.with_name(f".{journal.name}.lock"))


def find_end(file: IO[bytes]) -> int:
    """Return where the last complete line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    if end == 0 or (file.seek(end - 1) and file.read(1) == b"\n"):
        return end
    file.seek(0)
    return file.read().rfind(b"\n") + 1
