"""Several processes of one sweep on this machine: each the same command again, with its share of the threads or its GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from research.run_dir import WORKER_ENV_VAR
from research.sweep.settings import Settings

MAX_DEATHS = 100  # of workers, after which something is wrong with more than their trials


def get_worker_spec() -> dict[str, Any] | None:
    """What the process that started this one has told it; None for one that the user started."""
    told = os.environ.get(WORKER_ENV_VAR)
    return json.loads(told) if told else None


def is_orphaned() -> bool:
    """Whether the process that started this worker is gone: it ends after the trial under way."""
    told = get_worker_spec()
    return told is not None and os.getppid() != told["parent"]


class SupervisedSweep(Protocol):
    """What a supervisor asks about the sweep."""

    def is_finished(self) -> bool: ...
    def has_trials_left(self) -> bool: ...
    def update_progress(self) -> None: ...


def supervise(settings: Settings, folder: Path, study: str, sweep: SupervisedSweep) -> None:
    """Keep `workers` processes at work until each says that there is no more to do; one that is killed is replaced.

    A signal to end is passed on to them: they save what they are at. Raises ValueError where a worker failed.
    """
    begun, deaths, failed = time.time(), 0, list[int]()
    running: dict[int, subprocess.Popen[bytes]] = {}
    before = {signum: signal.signal(signum, exit_on_signal) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        running = {index: start_worker(index, settings, folder, study, begun) for index in range(settings.workers)}
        while running:
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                deaths += code < 0
                if code < 0 and deaths <= MAX_DEATHS and not sweep.is_finished():
                    print(f"{'worker':<16} {index} died by signal {-code}: another one takes its place", flush=True)
                    running[index] = start_worker(index, settings, folder, study, begun)
                elif code:
                    failed.append(index)
            sweep.update_progress()
            time.sleep(0.2)
    except (KeyboardInterrupt, SystemExit) as asked:
        stop_workers(
            list(running.values()), signal.SIGINT if isinstance(asked, KeyboardInterrupt) else int(str(asked.code)) - 128
        )
        raise
    except BaseException:
        stop_workers(list(running.values()), signal.SIGTERM)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if not sweep.is_finished() and failed and sweep.has_trials_left():
        raise ValueError(
            f"hydra.sweeper.workers: {len(failed)} of them failed\n{read_worker_error(folder / f'worker-{failed[0]}.log')}"
        )


def exit_on_signal(signum: int, _: Any) -> None:
    raise SystemExit(128 + signum)


def start_worker(index: int, settings: Settings, folder: Path, study: str, start_time: float) -> subprocess.Popen[bytes]:
    """The command that this process was started with, as worker `index`; Ctrl-C reaches it through this process alone."""
    own = dict(os.environ)
    told = {"index": index, "folder": str(folder), "study": study, "parent": os.getpid(), "begun": start_time}
    own[WORKER_ENV_VAR] = json.dumps(told)
    threads = max(1, (os.cpu_count() or 1) // settings.workers)
    own.setdefault("OMP_NUM_THREADS", str(threads))
    if settings.devices:
        own["CUDA_VISIBLE_DEVICES"] = str(settings.devices[index % len(settings.devices)])
    with (folder / f"worker-{index}.log").open("ab") as output:
        to = {"stdout": output, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(sys.orig_argv, env=own, start_new_session=True, **to)  # type: ignore[call-overload,no-any-return]


def stop_workers(processes: list[subprocess.Popen[bytes]], signum: int) -> None:
    """Ask them to save and end, again where the user does, and wait for it a minute at most."""
    until = time.monotonic() + 60
    for process in processes:
        process.send_signal(signum)
    while any(process.poll() is None for process in processes):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            for process in processes:
                process.send_signal(signum)
        if time.monotonic() > until:
            for process in processes:
                process.kill()


def read_worker_error(path: Path) -> str:
    """What a worker said at its end, and where the rest is."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"{(lines or ['nothing was said'])[-1][:300]}\nall of it is in {path}"
