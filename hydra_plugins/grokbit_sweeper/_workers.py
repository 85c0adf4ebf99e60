"""Several processes of one sweep on this machine: each the same command again, with its share of the threads or its GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from hydra_plugins.grokbit_sweeper._settings import Settings

VARIABLE = "GROKBIT_WORKER"
DEATHS = 100  # of workers, after which something is wrong with more than their trials


def mine() -> dict[str, Any] | None:
    """What the process that started this one has told it; None for one that the user started."""
    told = os.environ.get(VARIABLE)
    return json.loads(told) if told else None


def orphaned() -> bool:
    """Whether the process that started this worker is gone: it ends after the trial under way."""
    told = mine()
    return told is not None and os.getppid() != told["parent"]


class Watched(Protocol):
    """What a supervisor asks about the sweep."""

    def over(self) -> bool: ...
    def look(self) -> None: ...


def supervise(settings: Settings, folder: Path, study: str, sweep: Watched) -> None:
    """Keep `workers` processes at work until each says that there is no more to do; one that dies is replaced.

    Ctrl-C and SIGTERM reach them too, and they save what they are at.
    """
    running: dict[int, subprocess.Popen[bytes]] = {}
    deaths = 0

    def passed_on(signum: int, _: Any) -> None:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, passed_on)
    try:
        running = {index: start(index, settings, folder, study) for index in range(settings.workers)}
        while running:
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                deaths += code < 0
                if code < 0 and deaths <= DEATHS and not sweep.over():
                    print(f"{'worker':<16} {index} died by signal {-code}: another one takes its place", flush=True)
                    running[index] = start(index, settings, folder, study)
            sweep.look()
            time.sleep(0.2)
    finally:
        signal.signal(signal.SIGTERM, before)
        end(list(running.values()))


def start(index: int, settings: Settings, folder: Path, study: str) -> subprocess.Popen[bytes]:
    """The command that this process was started with, as worker `index`."""
    own = dict(os.environ)
    own[VARIABLE] = json.dumps({"index": index, "folder": str(folder), "study": study, "parent": os.getpid()})
    threads = max(1, (os.cpu_count() or 1) // settings.workers)
    own.setdefault("OMP_NUM_THREADS", str(threads))
    if settings.devices:
        own["CUDA_VISIBLE_DEVICES"] = str(settings.devices[index % len(settings.devices)])
    with (folder / f"worker-{index}.log").open("ab") as output:
        return subprocess.Popen(sys.orig_argv, env=own, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask them to save and end; they have a minute for it."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
