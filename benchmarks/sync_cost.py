"""What it costs that a run outlives a power cut: the time in fsync, at its start, in its checkpoints, at its end.

    python -m benchmarks.sync_cost [--rounds 5] [--steps 60] [--folder outputs]

`train.py experiment=fastest` runs as a user starts it, in a process whose fsync is timed. It writes below `--folder`: fsync
costs what that disk asks for. The last row is one fsync of a file of 4 kB on the same disk.
"""

import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import harness
from research.contracts import contract

AT_MOST = {"start and end/run": 0.01}
PARTS = ("start", "checkpoints", "end")
PROGRAM = """
import atexit, json, os, runpy, sys, time
log, began, calls, sync = sys.argv.pop(1), time.perf_counter(), [], os.fsync
def timed(descriptor):
    path, start = os.readlink(f"/proc/self/fd/{descriptor}"), time.perf_counter()
    sync(descriptor)
    calls.append((path, time.perf_counter() - start))
os.fsync = timed
atexit.register(lambda: open(log, "w").write(json.dumps([time.perf_counter() - began, calls])))
sys.argv[0] = "train.py"
sys.path.insert(0, "")
runpy.run_path("train.py", run_name="__main__")
"""


def time_run(folder: Path, steps: int) -> dict[str, tuple[int, float]]:
    """Train once. Return of the run its seconds, of each part the number of fsyncs and their seconds."""
    log = folder / "syncs.json"
    lengths = (f"trainer.steps={steps}", f"callbacks.checkpoint.every={steps // 2}")
    harness.run_python("-c", PROGRAM, str(log), "experiment=fastest", *lengths, f"out={folder / 'runs'}")
    seconds, calls = json.loads(log.read_text())
    counts = {"run": (1, seconds)} | dict.fromkeys(PARTS, (0, 0.0))
    part = "start"
    for path, duration in calls:
        if ".summary.json" in path:
            part = "end"
        elif part == "start" and "metrics.jsonl" in path:
            part = "checkpoints"
        counts[part] = (counts[part][0] + 1, counts[part][1] + duration)
    return counts


def time_one(folder: Path) -> float:
    """Return the seconds of one fsync of a new file of 4 kB."""
    with (folder / "plain").open("wb") as file:
        file.write(bytes(4096))
        file.flush()
        start = time.perf_counter()
        os.fsync(file.fileno())
    return time.perf_counter() - start


@contract
def main(rounds: int, steps: int, folder: str) -> harness.Results:
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        runs = [time_run(Path(name).absolute(), steps) for _ in range(rounds)]
        one = statistics.median(time_one(Path(name)) for _ in range(50))
    middle = {part: statistics.median(run[part][1] for run in runs) for part in ("run", *PARTS)}
    for part in PARTS:
        count = runs[0][part][0]
        print(f"{part:24}{count:4} fsyncs {1e3 * middle[part]:8.1f} ms {middle[part] / middle['run']:8.2%} of the run")
    print(f"{'one fsync of 4 kB':24}{'':12}{1e3 * one:8.2f} ms; the run {middle['run']:.1f} s")
    return {"start and end/run": (middle["start"] + middle["end"]) / middle["run"], "milliseconds of one": 1e3 * one}


if __name__ == "__main__":
    outputs = {"default": str(harness.ROOT / "outputs"), "help": "a folder on the disk; by default outputs"}
    harness.run(main, __doc__, AT_MOST, rounds=5, steps=60, folder=outputs)
