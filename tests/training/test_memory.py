"""The run-time half of rule 3 of the Power of Ten: after its first steps a run holds no more memory, however long it is."""

import json
import subprocess
import sys
from pathlib import Path

from program import ROOT

STEPS = 300
PROGRAM = """
import gc, json, sys
from pathlib import Path
import torch
from fitting import fit
from research.training.oom import get_rss_mb
from research.training.state import Callback

class Memory(Callback):
    def __init__(self, leak):
        self.leak, self.kept, self.rss, self.objects = leak, [], {}, {}

    def on_step(self, state):
        step = state.progress.step
        if self.leak:
            self.kept.append(torch.zeros(8192) + step)
        if step in (steps, 2 * steps):
            gc.collect()
            self.rss[step], self.objects[step] = get_rss_mb(), sum(torch.is_tensor(item) for item in gc.get_objects())

torch.set_num_threads(1)
steps = int(sys.argv[3])
memory = Memory(sys.argv[2] == "leak")
fit(Path(sys.argv[1]), memory, steps=2 * steps, log_every=10, eval_every=50, every=100, health=True)
print(json.dumps([list(memory.rss.values()), list(memory.objects.values())]))
"""


def measure(folder: Path, kind: str) -> tuple[list[float], list[int]]:
    """Return the resident memory (MB) and the number of tensors after STEPS and after twice as many."""
    env = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", PROGRAM, str(folder), kind, str(STEPS)]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rss, tensors = json.loads(ended.stdout.splitlines()[-1])
    return rss, tensors


def test_memory_is_flat_between_n_steps_and_twice_as_many(tmp_path: Path) -> None:
    """With evaluations, log points, checkpoints, Grokfast and health of gradients: +-1 % of the memory, and no tensor more."""
    (before, after), (tensors_before, tensors_after) = measure(tmp_path / "run", "plain")
    assert abs(after - before) <= 0.01 * before
    assert tensors_after == tensors_before


def test_a_leak_of_a_few_kilobytes_a_step_is_seen(tmp_path: Path) -> None:
    (before, after), (tensors_before, tensors_after) = measure(tmp_path / "run", "leak")
    assert after - before > 0.01 * before
    assert tensors_after == tensors_before + STEPS
