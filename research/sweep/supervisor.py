"""Several processes of one sweep on this machine: each runs the same command, with its share of the threads or its GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from research.run_dir import WORKER_ENV_VAR
from research.sweep.settings import SweepSettings

MAX_DEATHS = 100  # of workers, after which something is wrong with more than their trials


def get_worker_spec() -> dict[str, Any] | None:
    """Return what the supervisor has handed this process; None in one that the user started."""
    text = os.environ.get(WORKER_ENV_VAR)
    return json.loads(text) if text else None


def is_orphaned() -> bool:
    """Return True in a worker whose supervisor is gone: it ends after the trial under way."""
    spec = get_worker_spec()
    return spec is not None and os.getppid() != spec["parent"]


@runtime_checkable
class SupervisedSweep(Protocol):
    """What a supervisor needs to know about the sweep."""

    def is_finished(self) -> bool: ...
    def has_trials_left(self) -> bool: ...
    def update_progress(self) -> None: ...


def supervise(settings: SweepSettings, folder: Path, study: str, sweep: SupervisedSweep) -> None:
    """Run `workers` processes until each has nothing left to do; replace one that is killed.

    Signals to end are passed on: workers save what they are at. Raises ValueError if a worker failed.
    """
    started, deaths, failed = time.time(), 0, list[int]()
    running: dict[int, subprocess.Popen[bytes]] = {}
    before = {signum: signal.signal(signum, exit_on_signal) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        running = {index: start_worker(index, settings, folder, study, started) for index in range(settings.workers)}
        while running:
            for index, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[index]
                deaths += code < 0
                if code < 0 and deaths <= MAX_DEATHS and not sweep.is_finished():
                    print(f"{'worker':<16} {index} died by signal {-code}: another one takes over", flush=True)
                    running[index] = start_worker(index, settings, folder, study, started)
                elif code:
                    failed.append(index)
            sweep.update_progress()
            time.sleep(0.2)
    except (KeyboardInterrupt, SystemExit) as stop:
        signum = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else int(str(stop.code)) - 128
        stop_workers(list(running.values()), signum)
        raise
    except BaseException:
        stop_workers(list(running.values()), signal.SIGTERM)
        raise
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    if not sweep.is_finished() and failed and sweep.has_trials_left():
        reason = read_worker_error(folder / f"worker-{failed[0]}.log")
        raise ValueError(f"hydra.sweeper.workers: {len(failed)} of them failed\n{reason}")


def exit_on_signal(signum: int, _: Any) -> None:
    raise SystemExit(128 + signum)


def start_worker(index: int, settings: SweepSettings, folder: Path, study: str, start_time: float) -> subprocess.Popen[bytes]:
    """Start this process's own command as worker `index`, in a session of its own: Ctrl-C reaches it through this process."""
    env = dict(os.environ)
    spec = {"index": index, "folder": str(folder), "study": study, "parent": os.getpid(), "begun": start_time}
    env[WORKER_ENV_VAR] = json.dumps(spec)
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.workers)))
    if settings.devices:
        env["CUDA_VISIBLE_DEVICES"] = str(settings.devices[index % len(settings.devices)])
    with (folder / f"worker-{index}.log").open("ab") as output:
        return subprocess.Popen(
            sys.orig_argv,
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


def stop_workers(processes: list[subprocess.Popen[bytes]], signum: int) -> None:
    """Signal the workers to save and end, again at each further Ctrl-C; kill them after a minute."""
    deadline = time.monotonic() + 60
    for process in processes:
        process.send_signal(signum)
    while any(process.poll() is None for process in processes):
        try:
            time.sleep(0.1)
        except KeyboardInterrupt:
            for process in processes:
                process.send_signal(signum)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()


def read_worker_error(path: Path) -> str:
    """Return the last line of a worker's log, and where the rest is."""
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return f"{(lines or ['it printed nothing'])[-1][:300]}\nits complete output is in {path}"
