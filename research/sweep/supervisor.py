"""Several processes of one sweep on this machine: each runs the same command, with its share of the threads or its GPU."""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from subprocess import DEVNULL, STDOUT, Popen

from research import signals
from research.cli import announce_wait
from research.run_dir import WORKER_ENV_VAR
from research.sweep.plan import Plan, format_row
from research.sweep.worker import Worker

MAX_DEATHS = 100  # of workers, after which something is wrong with more than their trials


def supervise(worker: Worker) -> None:
    """Run `workers` processes until each has nothing left to do; replace one that is killed. `worker` sees the same study.

    Signals to end are passed on: workers save what they are at. Raise ValueError if a worker failed.
    """
    plan, start_time, deaths, failed = worker.plan, time.time(), 0, list[int]()
    running: dict[int, Popen[bytes]] = {}
    with signals.watch() as watch:
        try:
            running |= {index: start_worker(index, plan, start_time) for index in range(plan.settings.workers)}
            while running and not watch.signum:
                for index, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[index]
                    deaths += code < 0
                    if code < 0 and deaths <= MAX_DEATHS and not worker.is_finished():
                        print(format_row("worker", f"{index} died by signal {-code}: another one takes over"), flush=True)
                        running[index] = start_worker(index, plan, start_time)
                    elif code:
                        failed.append(index)
                worker.update_progress()
                time.sleep(0.2)
        finally:
            stop_workers(list(running.values()), watch.signum or signal.SIGTERM)  # none is left at the end
    if watch.signum:
        raise KeyboardInterrupt if watch.signum == signal.SIGINT else SystemExit(signals.get_exit_code(watch.signum))
    if not worker.is_finished() and failed and worker.has_trials_left():
        output = plan.folder / f"worker-{failed[0]}.log"
        text = output.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()] or ["it printed nothing"]
        reason = f"{lines[-1][:300]}\nits complete output is in {output}"
        raise ValueError(f"hydra.sweeper.workers: {len(failed)} of them failed\n{reason}")


def start_worker(index: int, plan: Plan, start_time: float) -> Popen[bytes]:
    """Start this process's own command as worker `index`, in a session of its own: Ctrl-C reaches it through this process."""
    spec = {"index": index, "folder": str(plan.folder), "study": plan.name, "parent": os.getpid(), "begun": start_time}
    threads, devices = max(1, (os.cpu_count() or 1) // plan.settings.workers), plan.settings.devices
    env = {"OMP_NUM_THREADS": str(threads)} | os.environ | {WORKER_ENV_VAR: json.dumps(spec)}
    if devices:
        env["CUDA_VISIBLE_DEVICES"] = str(devices[index % len(devices)])
    with (plan.folder / f"worker-{index}.log").open("ab") as output:
        return Popen(sys.orig_argv, env=env, start_new_session=True, stdin=DEVNULL, stdout=output, stderr=STDOUT)


def stop_workers(processes: list[Popen[bytes]], signum: int) -> None:
    """Signal the workers to save and end, again at each further signal; kill them after a minute."""
    deadline, count = time.monotonic() + 60, -1
    with signals.watch() as watch, announce_wait(f"{len(processes)} workers, which save and end"):
        while any(process.poll() is None for process in processes):
            if watch.count != count:
                count = watch.count
                for process in processes:
                    process.send_signal(signum)
            with suppress(KeyboardInterrupt):
                time.sleep(0.1)
            if time.monotonic() > deadline:
                for process in processes:
                    process.kill()
