"""What watches a run: the state it sees and the four moments at which it looks."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from research.dataset import Dataset
from research.metrics import better


@dataclass
class State:
    """One run in flight. Callbacks read all of it and may write `stop`, nothing else."""

    model: nn.Module
    optimizer: Optimizer
    data: Dataset[Any]
    steps: int
    batch_size: int
    monitor: str
    task: str = ""  # what evaluations are of: only those of one task can be compared
    device: str = "cpu"
    name: str = "run"
    folder: Path | None = None
    step: int = 0  # optimizer steps done
    first: int = 0  # the step at which this process began: above 0 when resumed
    logged_at: int = 0  # the step of the last log point
    grad_norm: float | Tensor = math.nan  # before clipping
    logged: dict[str, float] = field(default_factory=dict)  # what this step logged; empty between log points
    metrics: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    best: dict[str, float] = field(default_factory=dict)  # all metrics at the best evaluation, and its "step"
    improved: bool = False  # this step's evaluation is the best so far
    seconds: float = 0.0  # since the first step, evaluations included
    stop: str = ""  # a reason to end; set when gradients are ready, the step under way is still judged
    error: str = ""  # why the run failed

    def resume(self, step: int, best: dict[str, float]) -> None:
        """Go on after `step`, with the best evaluation so far. Raises ValueError where nothing is left to do."""
        if step >= self.steps:
            raise ValueError(f"resume: step {step} of {self.steps} is done already; give trainer.steps more than {step}")
        self.step = self.first = step
        self.best = best

    def begin(self) -> None:
        """The first step starts now."""
        self.logged_at = self.first
        self._started = time.perf_counter()

    def advance(self) -> None:
        """One more step is done."""
        self.step += 1
        self.logged, self.improved = {}, False
        self.seconds = time.perf_counter() - self._started

    def rate(self) -> float:
        """Samples or tokens a second since the first step."""
        samples = (self.step - self.first) * self.batch_size
        per_sample = self.data.shape.length if self.data.unit == "token" else 1
        return samples * per_sample / max(self.seconds, 1e-9)

    def log(self, metrics: dict[str, float]) -> None:
        """Take in new numbers; keep the evaluation that is best by `monitor`. A loss that is not finite ends the run."""
        for key in ("train/loss", "val/loss"):
            if not math.isfinite(metrics.get(key, 0.0)):
                lr = self.optimizer.param_groups[0]["lr"]
                raise FloatingPointError(
                    f"{key} is {metrics[key]} at step {self.step} with lr={lr:.3g}; lower lr, or set trainer.clip_norm"
                )
        self.logged |= metrics
        self.metrics |= metrics
        value = metrics.get(self.monitor)
        if value is not None and (not self.best or better(self.monitor, value, self.best[self.monitor])):
            self.best, self.improved = {**metrics, "step": self.step}, True


class Callback:
    """Looks at four moments; each does nothing unless a subclass says otherwise."""

    def on_start(self, state: State) -> None:
        """Before the first step."""

    def on_gradients(self, state: State) -> None:
        """Gradients are complete and clipped; the optimizer has not stepped."""

    def on_step(self, state: State) -> None:
        """After each step, its log point and its evaluation."""

    def on_end(self, state: State) -> None:
        """After the last step, also when the run failed (`state.error`)."""
