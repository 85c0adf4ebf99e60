"""The state of a run, and what watches it: callbacks, which look at four moments."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from research.cli import describe_error
from research.contracts import contract
from research.data.spec import Dataset, Samples
from research.losses import Loss, Objective
from research.metrics import Metric
from research.optim.schedules import get_lr
from research.options.finetuning import get_digest, is_frozen
from research.options.trigger import is_better
from research.signals import Stopped
from research.training import distributed
from research.training.batches import Batches
from research.training.ema import Average
from research.training.progress import Progress

TIME_LIMIT = "the time limit"  # how the reason begins why a run ended by the clock
PRUNED_REASON = "pruned: other trials were better at this step"  # why a run ended that its study has given up
Schedule = Callable[[int, int], float | tuple[float, float]]  # (step, steps) -> factors on lr, and on weight decay


@runtime_checkable
class Stateful(Protocol):
    """What can be kept in a checkpoint."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@contract
@dataclass(frozen=True)
class RunInfo:
    """What is known of a run before its first step."""

    steps: int  # to be done in all
    batch_size: int  # samples a step, over all processes
    log_every: int = 1  # steps between two log points
    eval_every: int = 1  # steps between two evaluations
    monitor: str = "val/loss"  # the metric by which runs are compared
    task: str = ""  # what evaluations are of: only those of one task can be compared
    name: str = "run"
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)  # resolved; empty for a run without one
    config_digest: str = ""
    in_sweep: bool = False  # the sweep has the screen
    directions: Mapping[str, bool] = field(default_factory=dict)  # of the metrics that say whether more is better
    device: str = "cpu"

    @property
    def base(self) -> str:
        """The digest of the weights that are fine-tuned, of which checkpoints leave out those that do not learn; or nothing."""
        return get_digest(self.config) if is_frozen(self.config) else ""


@contract
@dataclass
class State:
    """One run in flight: what is trained, what it has reached, and what this process alone needs.

    Callbacks read all of it. They may write `stop` and `resume_override`, numbers to be logged into
    `progress.extra_metrics`, and words for the end of the run into `end_notes`.
    """

    model: nn.Module
    net: nn.Module  # the model, or its DistributedDataParallel wrapper: what the loop calls
    optimizer: Optimizer
    schedule: Schedule
    loss: Loss  # what evaluations report
    objective: Objective  # what is minimised
    data: Dataset[Any]
    val: Samples  # what is held back, on the device
    batches: Batches  # the training samples, step by step
    info: RunInfo
    progress: Progress = field(default_factory=Progress)
    metrics: dict[str, Metric] = field(default_factory=dict)  # what evaluations report besides loss and accuracy
    callbacks: list["Callback"] = field(default_factory=list)
    average: Average | None = None  # of the weights, where one is kept
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))  # of fp16
    sharded: bool = False  # the weights are spread over the processes
    # Of this process and this moment alone:
    first_step: int = 0  # at which this process began: above 0 when resumed
    seconds_before: float = 0.0  # of training, before this process began
    start_time: float = 0.0  # of the clock; earlier processes' training counts too
    shared_metrics: Mapping[str, float] = field(default_factory=dict)  # the newest ones as the first process saw them
    logged: dict[str, float] = field(default_factory=dict)  # what this step logged; empty between log points
    has_evaluated: bool = False  # in this process
    improved: bool = False  # this step's evaluation is the best so far
    last_eval_step: int = 0  # of this process's last evaluation
    skipped_on_device: Tensor | None = None  # whether the last update was left out; to be looked at before saving
    end_notes: dict[str, str] = field(default_factory=dict)  # what callbacks say at the end of the run
    stop: str = ""  # a reason to end; set when gradients are ready, the step under way is still evaluated
    resume_override: str = ""  # the override that continues past that reason, as target=null; empty: none
    signum: int = 0  # the signal that asked the run to end
    error: str = ""  # why the run failed
    folder_identity: tuple[int, int] | None = None  # of the run folder, once it is there
    has_lost_folder: bool = False  # it was moved away

    def __post_init__(self) -> None:
        if isinstance(self.objective, RunObjective):
            self.objective.prepare(self)

    @property
    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint must also hold, by its name there: callbacks have their class and a count, as "Checkpoint 0"."""
        names = [callback.checkpoint_name or type(callback).__name__ for callback in self.callbacks]
        numbered = [f"{name} {names[:i].count(name)}" for i, name in enumerate(names)]
        parts: dict[str, Stateful] = dict(zip(numbered, self.callbacks, strict=True))
        parts["scaler"] = self.scaler
        if isinstance(self.objective, RunObjective):
            parts["objective"] = self.objective
        return parts

    def require_folder(self) -> None:
        """Raise FileNotFoundError where the run folder was moved, replaced or deleted meanwhile; from then on there is none.

        What the run would write there now would be half a run, or a part of another one.
        """
        if (folder := self.info.folder) is None:
            return
        status = folder.stat() if folder.is_dir() else None
        identity = (status.st_dev, status.st_ino) if status else None
        is_lost = identity is None and bool(self.info.config)  # a program's run has made its folder before
        if is_lost or self.folder_identity not in (None, identity):
            self.info, self.has_lost_folder = replace(self.info, folder=None), True
            fix = "its checkpoints are where it is now: give resume=FOLDER"
            raise FileNotFoundError(f"out: {folder} was moved, replaced or deleted while the run wrote to it\n{fix}")
        self.folder_identity = identity

    def start_clock(self) -> None:
        """Start the clock of this process."""
        self.start_time = time.perf_counter() - self.progress.seconds

    def advance(self) -> None:
        """Count one more step."""
        if isinstance(self.objective, RunObjective):
            self.objective.count_step()
        self.progress.step += 1
        self.progress.samples += self.info.batch_size
        self.progress.eval_pending = True
        self.progress.seconds = time.perf_counter() - self.start_time
        self.logged, self.improved = {}, False

    def compute_throughput(self) -> float:
        """Return samples or tokens a second in this process."""
        samples = (self.progress.step - self.first_step) * self.info.batch_size
        per_sample = self.data.shape.seq_len if self.data.unit == "token" else 1
        return samples * per_sample / max(self.progress.seconds - self.seconds_before, 1e-9)

    def collect_training_metrics(self) -> dict[str, float]:
        """Return means since the last log point. Here, and only here, the host waits for the device."""
        progress = self.progress
        loss_sum, loss_count = float(progress.loss_sum), int(progress.loss_count)
        progress.loss_sum, progress.loss_count = progress.loss_sum * 0, 0
        losses = {"train/loss": loss_sum / loss_count} if loss_count else {}  # every update may have been left out
        own = self.objective.collect_metrics() if isinstance(self.objective, RunObjective) else {}
        return {
            **losses,
            **own,
            "lr": get_lr(self.optimizer),
            "grad/norm": float(progress.grad_norm),
            f"perf/{self.data.unit}s_per_s": self.compute_throughput(),
        }

    @contract
    def log(self, metrics: Mapping[str, float]) -> None:
        """Take in new numbers and those of callbacks; keep the evaluation that is best by the monitor."""
        progress, monitor = self.progress, self.info.monitor
        new = {name: float(value) for name, value in {**metrics, **progress.extra_metrics}.items()}  # numpy's and torch's too
        progress.extra_metrics = {}
        self.logged |= new
        progress.metrics |= new
        self.last_eval_step = progress.step if monitor in new else self.last_eval_step
        value = new.get(monitor, math.nan)
        if math.isfinite(value) and (
            not progress.best or is_better(monitor, value, progress.best[monitor], self.info.directions)
        ):
            progress.best, self.improved = {**new, "step": progress.step}, True


class RunObjective(ABC):
    """An objective that must know the run that it is of: its data, its model and its device."""

    @abstractmethod
    def check(self, data: Dataset[Any]) -> None:
        """Raise ValueError for data that it does not fit, before anything is written."""

    @abstractmethod
    def prepare(self, state: "State") -> None:
        """Load what it needs: the run is built, and has not begun."""

    @abstractmethod
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return one number a target."""

    def count_step(self) -> None:  # noqa: B027
        """Take in the step that was done. All processes call it."""

    def drop_step(self) -> None:  # noqa: B027
        """Forget what was computed of the step under way: it is computed again."""

    def collect_metrics(self) -> dict[str, float]:
        """Return numbers for the log since the last log point. All processes call it, where the host waits anyway."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of it: what counts since the last log point, no teacher."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Go on from there."""


class Callback:
    """Looks at four moments; each does nothing unless a subclass says otherwise.

    Of several processes only the first has callbacks. One that counts or remembers gives that in `state_dict`: a run
    that is resumed must find it again.
    """

    checkpoint_name = ""  # its name in a checkpoint; that of its class where this is empty
    saves = False  # it writes checkpoints: it comes after all others, and where weights are sharded all processes have it

    def flush(self) -> None:
        """Wait until whatever it does beside the training is done."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold of it: numbers, texts, lists, dicts and tensors."""
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


@contract
def select_callbacks(callbacks: Sequence[Callback], sharded: bool) -> list[Callback]:
    """Return the callbacks of this process, those that save last: what they save includes the others' state."""
    if distributed.rank() > 0:
        callbacks = [callback for callback in callbacks if callback.saves and sharded]
    return sorted(callbacks, key=lambda callback: callback.saves)


@contextmanager
def around_callbacks(state: State) -> Iterator[None]:
    """Start the callbacks, and end them whatever happens.

    A signal (Stopped) ends the block in peace and is kept in `state.signum`. Every `on_end` is called in order even if
    one raises. What callbacks log last counts after that.
    """
    with ExitStack() as endings:  # called in the reverse order
        endings.callback(lambda: state.progress.metrics.update(state.progress.extra_metrics))
        for callback in reversed(state.callbacks):
            endings.callback(callback.on_end, state)
        try:
            state.require_folder()
            for callback in state.callbacks:
                callback.on_start(state)
            state.start_clock()
            yield
            state.require_folder()
        except Stopped as stopped:
            state.signum = stopped.signum
        except BaseException as error:
            state.error = describe_error(error)
            if isinstance(error, OSError):
                state.require_folder()  # raises where the folder was moved while something was written there
            raise
