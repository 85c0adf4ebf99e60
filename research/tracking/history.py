"""metrics.jsonl: one JSON object a log point, with a checksum. What a damaged file has lost comes back from the checkpoint."""

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from research.contracts import contract
from research.run_dir import CHECKSUM_KEY, SUMMARY_FILE, Summary, add_checksum, parse_json, replace_nonfinite

METRICS_FILE = "metrics.jsonl"
MAX_BACKUP = 1 << 21  # characters of the newest lines that a checkpoint holds
MAX_NAMED = 5  # damaged lines that one message names
log = logging.getLogger(__name__)
Lines = dict[int, str]  # by step


@contract
def format_line(record: dict[str, Any]) -> str:
    """Return a line of metrics.jsonl."""
    return json.dumps(add_checksum(replace_nonfinite(record))) + "\n"


def parse_line(line: str) -> tuple[int, dict[str, Any]]:
    """Return the step and the whole record of a line; old lines have no checksum. Raise ValueError for a damaged one."""
    if not line.endswith("\n"):
        raise ValueError("it is incomplete")
    record = parse_json(line)
    if not isinstance(step := record.get("step"), int):
        raise ValueError("it has no step")
    return step, record


@contract
def read_lines(path: Path) -> tuple[Lines, list[str]]:
    """Return the intact lines of a file, and a description of each damaged one; nothing of a file that is not there."""
    lines, damage, is_checked = Lines(), [], False
    content = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(content, start=1):
        try:
            step = parse_line(line)[0]
            if is_checked > (is_checked := CHECKSUM_KEY in line):  # only an older version, thus an earlier part, wrote none
                raise ValueError(f"it has no {CHECKSUM_KEY}, as those before it have")
            lines[step] = line
        except ValueError as error:
            damage.append(f"line {number} is damaged: {error}")
    return lines, damage


@contract
def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the intact records of a file. Log a warning that names the damaged lines."""
    lines, damage = read_lines(path)
    if damage:
        log.warning("%s: %s", path, describe(damage, "is left out"))
    yield from (parse_line(line)[1] for line in lines.values())


@contract
def describe(damage: list[str], outcome: str) -> str:
    """Return the damage in one line, and what became of it."""
    rest = f"; and {len(damage) - MAX_NAMED} more" if len(damage) > MAX_NAMED else ""
    return f"{'; '.join(damage[:MAX_NAMED])}{rest} ({outcome})"


@contract
def select_backup(lines: Lines) -> Lines:
    """Return the newest lines, as many as a checkpoint holds."""
    backup, size = Lines(), 0
    for step in sorted(lines, reverse=True):
        size += len(lines[step])
        if size > MAX_BACKUP:
            break
        backup[step] = lines[step]
    return dict(sorted(backup.items()))


@contract
def recover_lines(path: Path, backup: Lines, count: int, last_step: int) -> Lines:
    """Return the lines up to a step as they were written, in order: `count` of them, the newest ones in `backup`.

    From the first step of the backup on, the backup is right. Log a warning that names each damaged or missing line.
    """
    lines, damage = read_lines(path)
    lines = {step: line for step, line in lines.items() if step <= last_step}
    first = min(backup, default=last_step + 1)
    for step in sorted(lines.keys() | backup.keys()):
        if step >= first and lines.get(step) != backup.get(step):
            damage.append(f"the line of step {step} {'is missing' if step not in lines else 'is not what was written'}")
    older = {step: lines[step] for step in sorted(lines) if step < first}
    lost = count - len(backup) - len(older)
    if damage or lost > 0:
        note = f"; {lost} lines before step {first} are lost" if lost > 0 else ""
        outcome = "the checkpoint's lines are used" if backup else "what is damaged is removed"
        log.warning("%s: %s%s", path, describe(damage, outcome), note)
    return older | backup


@contract
def find_contradiction(folder: Path, summary: Summary) -> str:
    """Return how a run's summary.json and its metrics.jsonl differ about the best value; empty where they do not.

    A summary without a checksum is of an older version, which wrote such lines too: without its line it is not believed.
    """
    lines, _ = read_lines(folder / METRICS_FILE)
    step = summary.best.get("step")
    line = lines.get(int(step)) if step is not None else None
    logged: Mapping[str, Any] = parse_line(line)[1] if line else {}
    known = (logged.get(summary.monitor), summary.best.get(summary.monitor), summary.value)
    values = dict.fromkeys(value for value in known if value is not None)
    if len(values) > 1:
        return f"{summary.monitor} at step {step} is {' or '.join(map(repr, values))}"
    is_checked = CHECKSUM_KEY in (folder / SUMMARY_FILE).read_text(encoding="utf-8", errors="replace")
    if values and not is_checked and (not line or CHECKSUM_KEY in line):
        return (
            f"{SUMMARY_FILE} has no {CHECKSUM_KEY}, and {f'the line of step {step} has one' if line else 'no line confirms it'}"
        )
    return ""
