"""A callback that logs how busy this machine is, and how much memory a run takes; a thread looks, not a step."""

import os
import threading
from collections.abc import Callable

import torch

from research.ranges import PositiveFloat, check_settings
from research.training.state import Callback, State

MB = 1e6


class System(Callback):
    """Log perf/cpu_percent, perf/memory_percent and perf/rss_mb; perf/gpu_percent and perf/gpu_memory_mb where there is a GPU.

    The processor's is that of this process, 100 a core; the memory's is that of the machine. A thread reads them every
    `seconds`; each log point has the newest ones.
    """

    def __init__(self, seconds: PositiveFloat = 5.0) -> None:
        check_settings("callbacks.system", System.__init__.__annotations__, locals())
        self.seconds, self.sample = seconds, dict[str, float]()

    def on_start(self, state: State) -> None:
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, args=(make_reader(state.info.device),), name="system", daemon=True)
        self.thread.start()

    def on_gradients(self, state: State) -> None:
        if (state.progress.step + 1) % state.info.log_every == 0:
            state.progress.extra_metrics.update(self.sample)

    def on_end(self, state: State) -> None:
        self.over.set()
        self.thread.join(1.0)

    def _watch(self, read: Callable[[], dict[str, float]]) -> None:
        while not self.over.wait(self.seconds if self.sample else 0.1):  # soon at first: short runs have it too
            self.sample = read()


def make_reader(device: str) -> Callable[[], dict[str, float]]:
    """Return a function that reads the numbers; those of the processor are since the last call."""
    import psutil

    process, has_gpu = psutil.Process(os.getpid()), device.startswith("cuda")
    process.cpu_percent()  # begins to count

    def read() -> dict[str, float]:
        numbers = {
            "perf/cpu_percent": process.cpu_percent(),
            "perf/memory_percent": psutil.virtual_memory().percent,
            "perf/rss_mb": process.memory_info().rss / MB,
        }
        return numbers | (read_gpu() if has_gpu else {})

    return read


def read_gpu() -> dict[str, float]:
    """Return the numbers of the current GPU: how busy it is needs nvidia-ml-py, and is left out without it."""
    free, total = torch.cuda.mem_get_info()
    numbers = {"perf/gpu_memory_mb": (total - free) / MB}
    try:
        return numbers | {"perf/gpu_percent": float(torch.cuda.utilization())}
    except (ModuleNotFoundError, RuntimeError):
        return numbers
