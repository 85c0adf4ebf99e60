"""What watches a run: the state it sees and the four moments at which it looks."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from research.data.spec import Dataset
from research.training.ema import Average
from research.trigger import is_better

PRUNED_REASON = "pruned: other trials were better at this step"  # the reason to end of a run that its study has given up


@runtime_checkable
class Stateful(Protocol):
    """What can be kept in a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class State:
    """One run in flight. Callbacks read all of it; they may write `stop` and `lift`, numbers to be logged into `told`, and
    words for the end of the run into `said`.
    """

    model: nn.Module
    optimizer: Optimizer
    data: Dataset[Any]
    steps: int
    batch_size: int
    monitor: str
    task: str = ""  # what evaluations are of: only those of one task can be compared
    config: str = ""  # digest of the configuration that the run was composed from
    device: str = "cpu"
    processes: str = "1 process"
    name: str = "run"
    folder: Path | None = None
    average: Average | None = None  # of the weights, where one is kept
    stateful: dict[str, Stateful] = field(default_factory=dict)  # what else a checkpoint must hold, by name
    sharded: bool = False  # the weights are spread over the processes
    log_every: int = 1  # steps between two log points
    eval_every: int = 1  # steps between two evaluations
    step: int = 0  # optimizer steps done
    first_step: int = 0  # the step at which this process began: above 0 when resumed
    eval_pending: bool = False  # the last step still has to be logged and judged
    loss_sum: float | Tensor = 0.0  # the losses since the last log point, summed; on the device while training
    loss_count: int | Tensor = 0  # how many they are
    grad_norm: float | Tensor = math.nan  # before clipping
    extra_metrics: dict[str, float] = field(default_factory=dict)  # what callbacks add to the next log point
    end_notes: dict[str, str] = field(default_factory=dict)  # what callbacks say at the end of the run
    logged: dict[str, float] = field(default_factory=dict)  # what this step logged; empty between log points
    metrics: dict[str, float] = field(default_factory=dict)  # the newest value of each metric
    best: dict[str, float] = field(default_factory=dict)  # all metrics at the best evaluation, and its "step"
    improved: bool = False  # this step's evaluation is the best so far
    skipped_on_device: Tensor | None = None  # on a device: whether the last update was left out; to be asked before saving
    last_finite_checkpoint: int = -1  # the step of the last checkpoint before numbers were last not finite: it is kept
    rollbacks: int = 0  # times that the run went back to a checkpoint
    oom_halvings: int = 0  # times that the micro-batch was halved, for want of memory
    seconds: float = 0.0  # of training, evaluations included, in all processes that this run has had
    seconds_before: float = 0.0  # of them, before this process began
    stop: str = ""  # a reason to end; set when gradients are ready, the step under way is still judged
    resume_override: str = ""  # the override that a run needs to go on past that reason, as target=null; empty: none
    signum: int = 0  # the signal that asked the run to end
    error: str = ""  # why the run failed

    def begin(self) -> None:
        """The first step of this process starts now."""
        self._start_time = time.perf_counter() - self.seconds

    def advance(self) -> None:
        """One more step is done."""
        self.step += 1
        self.logged, self.improved, self.eval_pending = {}, False, True
        self.seconds = time.perf_counter() - self._start_time

    def compute_throughput(self) -> float:
        """Samples or tokens a second in this process."""
        samples = (self.step - self.first_step) * self.batch_size
        per_sample = self.data.shape.seq_len if self.data.unit == "token" else 1
        return samples * per_sample / max(self.seconds - self.seconds_before, 1e-9)

    def log(self, metrics: dict[str, float]) -> None:
        """Take in new numbers, and what callbacks told; keep the evaluation that is best by `monitor`."""
        metrics = {
            name: float(value) for name, value in (metrics | self.extra_metrics).items()
        }  # also of numpy's and torch's numbers
        self.extra_metrics = {}
        self.logged |= metrics
        self.metrics |= metrics
        value = metrics.get(self.monitor, math.nan)
        if math.isfinite(value) and (not self.best or is_better(self.monitor, value, self.best[self.monitor])):
            self.best, self.improved = {**metrics, "step": self.step}, True


class Callback:
    """Looks at four moments; each does nothing unless a subclass says otherwise.

    Of several processes only the first has callbacks. One that counts or remembers gives that in `state_dict`: a run
    that goes on must find it again.
    """

    saves = False  # it writes checkpoints: it comes after all others, and where weights are sharded all processes have it

    def flush(self) -> None:
        """Wait until whatever it does beside the training is done."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold of it: numbers, texts, lists, dicts and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def on_start(self, state: State) -> None:
        """Before the first step."""

    def on_gradients(self, state: State) -> None:
        """Gradients are complete and clipped; the optimizer has not stepped."""

    def on_step(self, state: State) -> None:
        """After each step, its log point and its evaluation."""

    def on_end(self, state: State) -> None:
        """After the last step, also when the run failed (`state.error`)."""
